"""Draw the demo images again, identical each time: `python -m xcam.models.demo.draw FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from xcam.images import writing
from xcam.models.demo.scenes import CLASSES, scene

SEED = 4
SIZE = 256


def main(folder: Path) -> None:
    """Write one image for each class: `1-disc.png` … `6-ring.png`."""
    rng = np.random.default_rng(SEED)
    for label, name in enumerate(CLASSES):
        writing.write(folder / f"{label + 1}-{name}.png", scene(rng, [label], SIZE).image)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
