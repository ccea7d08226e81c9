"""A set of 12-megapixel photographs through ResNet50 on ONNX Runtime: how much of the cores goes to the model and to decoding?

    python benchmarks/batch.py [--images 500] [--engine ray]

Bare inference in its best batch and bare decoding are each timed alone, in CPU seconds; what the cores could do with that
is held against what `xcam.batch` does.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))

import xcam
from xcam.dataset import worker

DIFFERENT = 20
"""Photographs that are drawn; the others are links to them."""


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 4000×3000 with detail at every scale, about as large as a camera's."""
    for k in range(DIFFERENT):
        rng = np.random.default_rng(k)
        image = sum(
            cv2.resize(
                rng.normal(0, 40, (3 * n, 4 * n, 3)).astype(np.float32), (4000, 3000), interpolation=cv2.INTER_CUBIC
            )
            for n in (4, 30, 250)
        )
        noisy = np.clip(128 + image + rng.normal(0, 4, (3000, 4000, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{k:04d}.jpg"), noisy, [cv2.IMWRITE_JPEG_QUALITY, 92])
    for k in range(DIFFERENT, count):
        os.link(folder / f"{k % DIFFERENT:04d}.jpg", folder / f"{k:04d}.jpg")
    return sorted(folder.iterdir())


def resnet(folder: Path) -> Path:
    import torch

    import torch_architectures

    torch.manual_seed(0)
    path = folder / "resnet50.onnx"
    batch = torch.export.Dim("batch")
    net = torch_architectures.resnet50().eval()
    torch.onnx.export(
        net, (torch.zeros(2, 3, 224, 224),), str(path), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    return path


def cpu(work: Any, pictures: int) -> float:
    """CPU seconds for each picture, of all threads."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / pictures


def inference(path: Path) -> tuple[int, float]:
    """The best batch, and its CPU seconds for each picture."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options)
    name = session.get_inputs()[0].name
    found = {}
    for size in (1, 4, 8, 16, 32):
        x = np.random.default_rng(0).normal(size=(size, 3, 224, 224)).astype(np.float32)
        session.run(None, {name: x})
        rounds = max(2, 64 // size)
        found[size] = cpu(
            lambda x=x, rounds=rounds: [session.run(None, {name: x}) for _ in range(rounds)], rounds * size
        )
    best = min(found, key=lambda size: found[size])
    print("inference, CPU ms for each picture:", {k: round(1000 * v, 1) for k, v in found.items()})
    return best, found[best]


def beside(path: Path, files: list[Path], batch: int) -> float:
    """CPU seconds for each picture when bare decoding runs beside bare inference: they share caches, and get slower."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options)
    feed = {session.get_inputs()[0].name: np.zeros((batch, 3, 224, 224), np.float32)}
    session.run(None, feed)

    def work() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            coming = [
                pool.submit(lambda file: worker.decoded(file.read_bytes(), "photo", 224), file) for file in files
            ]
            for k in range(0, len(files), batch):
                session.run(None, feed)
                for future in coming[k : k + batch]:
                    future.result()

    return cpu(work, len(files))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--engine", default="local")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="xcam-batch-"))
    try:
        (place / "photos").mkdir()
        files = photographs(place / "photos", given.images)
        path = resnet(place)
        data = [file.read_bytes() for file in files[:DIFFERENT]]
        print(f"{DIFFERENT} photographs, {np.mean([len(d) for d in data]) / 1e6:.1f} MB each; {os.cpu_count()} cores")
        best, model = inference(path)
        decoding = cpu(lambda: [worker.decoded(d, "photo", 224) for d in data], len(data))
        print(
            f"decoding at an eighth: {1000 * decoding:.1f} ms of CPU; inference in batches of {best}: {1000 * model:.1f} ms"
        )
        layer = [n.name for n in xcam.load(path).layers if n.shape[1:] == (7, 7)][-1]
        least = beside(path, files, best)
        print(f"the two beside each other, without xcam: {1000 * least:.1f} ms of CPU for each picture")
        before = psutil.Process().memory_info().rss
        start, spent = time.monotonic(), os.times()
        xcam.batch(
            path, str(place / "photos"), out=place / "out", load_options={"preprocess": "torch"}, layer=layer, batch=best,
            engine=given.engine,
        )  # fmt: skip
        wall = time.monotonic() - start
        after = os.times()
        used = (after.user + after.system - spent.user - spent.system) / given.images
        allowed = (os.cpu_count() or 1) / (model + decoding)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{given.engine}: {given.images / wall:.2f} pictures a second in {wall:.1f} s; {allowed:.2f} allowed: {given.images / wall / allowed:.3f}"
        )
        print(
            f"CPU for each picture {1000 * used:.1f} ms: {1000 * (used - model - decoding):.1f} ms beside the two alone, {1000 * (used - least):.1f} beside both together"
        )
        print(f"peak {peak:.0f} MB; {before / 2**20:.0f} MB before, model file {path.stat().st_size / 2**20:.0f} MB")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
