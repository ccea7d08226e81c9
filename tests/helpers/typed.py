"""The result of a command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Result:
    status: int
    out: str
    err: str
