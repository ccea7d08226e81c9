"""Sets of pictures on the disk, some of them broken."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ground_truth import scenes_with_two

BROKEN = b"\xff\xd8\xff\xe0 cut off"


def write_set(folder: Path, count: int, broken: int = 0) -> list[Path]:
    """`count` JPEGs of scenes (twelve different ones, mirrored, brightened), of which `broken` cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [scene.image for scene in scenes_with_two(12)]
    rng = np.random.default_rng(5)
    bad = set(rng.choice(count, broken, replace=False).tolist())
    made = []
    for k in range(count):
        image = scenes[k % 12][:, :: 1 if k // 12 % 2 else -1]
        image = np.clip(image * (1 - 0.2 * rng.random()), 0, 255).astype(np.uint8)
        made.append(folder / f"{k:05d}.jpg")
        data = BROKEN if k in bad else cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        made[-1].write_bytes(data)
    return made
