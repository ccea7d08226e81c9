"""OpenCV, imported when it is first used; where it cannot be, the error names the remedy."""

from __future__ import annotations

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
