"""OpenCV, imported when it is first used; where it cannot be, the error names the remedy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


def load() -> Any:
    """The module cv2. Raises ImportError: on a bare server the shared libraries that it links to are often missing."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"OpenCV cannot be loaded: {error}; on a machine without a screen put its headless build over it: "
            "pip install --no-deps opencv-python-headless"
        ) from error
    return cv2


_silence = threading.Lock()
_users = 0
_level = 0


@contextlib.contextmanager
def silenced(cv2: Any) -> Iterator[None]:
    """OpenCV logs nothing meanwhile. Its level is one for all threads: the last to leave puts it back."""
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
