"""What came of a command that was typed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Result:
    status: int
    out: str
    err: str
