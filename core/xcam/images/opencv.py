"""OpenCV, imported at first use."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


def load() -> Any:
    """Return the module cv2.

    Raises:
        ImportError: OpenCV cannot be imported: on servers the shared libraries that it links to are often missing.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"OpenCV cannot be loaded: {error}; on a machine without a display install its headless build over it: "
            "pip install --no-deps opencv-python-headless"
        ) from error
    return cv2


_silence = threading.Lock()
_users = 0
_level = 0


@contextlib.contextmanager
def silenced(cv2: Any) -> Iterator[None]:
    """Silence OpenCV's log. The log level is global: the last thread to leave restores it."""
    global _users, _level
    with _silence:
        if not _users:
            _level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _users += 1
    try:
        yield
    finally:
        with _silence:
            _users -= 1
            if not _users:
                cv2.utils.logging.setLogLevel(_level)
