"""The causes of Keras' errors, which Keras writes before or after whole configurations."""

from __future__ import annotations

import re

from xcam.contract.messages import one_line

_CONFIGURATION = re.compile(
    r"(full object config|full config|using config|\bconfig|arguments received by \S+)\s*[=:].*", re.IGNORECASE
)


def cause(error: BaseException) -> str:
    """Return the cause of a failed load, in one line, without configurations."""
    text = " ".join(str(error).split())
    for sign in ("Exception encountered:", "Error encountered:"):
        text = text.rpartition(sign)[2] or text
    text = _CONFIGURATION.sub("", text).strip(" .:,") or text
    return one_line(Exception(text)) if text else one_line(error)
