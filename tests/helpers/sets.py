"""Sets of images on the disk, some of them broken, and the tables of batches."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

import xcam
from fake import FakeModel
from ground_truth import scenes_with_two

BROKEN = b"\xff\xd8\xff\xe0 cut off"
DEMO: dict[str, Any] = {"model": "demo", "backend": "onnx"}


class SmallModel(FakeModel):
    """A model that takes images of 4×6 pixels unscaled; red supports `cat`."""

    def __init__(self) -> None:
        super().__init__(weights=[[0.05, 0], [0, 0.05], [0, 0]])
        self.input = xcam.InputSpec((4, 6), preprocessing=xcam.Preprocessing("raw"))


def write_set(folder: Path, count: int, broken: int = 0) -> list[Path]:
    """Write `count` JPEGs of scenes (twelve different ones, flipped, with other brightness), `broken` of them unreadable."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [scene.image for scene in scenes_with_two(12)]
    rng = np.random.default_rng(5)
    bad = set(rng.choice(count, broken, replace=False).tolist())
    paths = []
    for k in range(count):
        image = scenes[k % 12][:, :: 1 if k // 12 % 2 else -1]
        image = np.clip(image * (1 - 0.2 * rng.random()), 0, 255).astype(np.uint8)
        paths.append(folder / f"{k:05d}.jpg")
        data = BROKEN if k in bad else cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        paths[-1].write_bytes(data)
    return paths


def read_rows(out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of the table in an output folder."""
    return pq.read_table(Path(out) / "table").to_pylist()


def write_csv(path: Path, *lines: str) -> str:
    """Write a text file, and return its path."""
    path.write_text("\n".join(lines).removesuffix("\n") + "\n", encoding="utf-8")
    return str(path)


def write_tar(path: Path, members: list[tuple[str, bytes | str]]) -> str:
    """Write a tar archive; a member whose data is text is a hard link to that path."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.LNKTYPE, data
            else:
                member.size = len(data)
            tar.addfile(member, None if isinstance(data, str) else io.BytesIO(data))
    return str(path)
