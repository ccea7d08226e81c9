"""Make the pictures of README and documentation: `python docs/make_pictures.py`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

import xcam
from xcam import demo, pictures

GAP = 8
DOCS = Path(__file__).parent


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with its caption above it, black on white."""
    strip = np.full((34, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.62, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, picture])


def main() -> None:
    """docs/demo.png: each shipped picture, and under it where the demo network looked."""
    model = xcam.load("demo", "keras")
    columns = []
    for e in xcam.explain(model, demo.pictures()):
        said = f"{e.label} {e.scores[e.index]:.0%}"
        columns += [np.vstack([captioned(e.image, said), e.overlay()]), np.full((546, GAP, 3), 255, np.uint8)]
    pictures.write(DOCS / "demo.png", np.hstack(columns[:-1]))


if __name__ == "__main__":
    main()
