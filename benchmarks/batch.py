"""Explain a set of 12-megapixel images with ResNet50 on ONNX Runtime: which share of the CPU do model and decoding get?

    python benchmarks/batch.py [--images 500] [--engine ray]

Inference alone, with the best batch size, and decoding alone are measured in CPU seconds. The throughput that these allow
is compared with that of `xcam.batch`.
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
"""The number of images that are drawn; the others are links to them."""


def jpegs(folder: Path, count: int) -> list[Path]:
    """Write JPEGs of 4000×3000 pixels with details at every scale; the files are about as large as those of a camera."""
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


def cpu(work: Any, images: int) -> float:
    """Return the CPU seconds per image, of all threads."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / images


def inference(path: Path) -> tuple[int, float]:
    """Return the best batch size, and its CPU seconds per image."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options)
    name = session.get_inputs()[0].name
    seconds = {}
    for size in (1, 4, 8, 16, 32):
        x = np.random.default_rng(0).normal(size=(size, 3, 224, 224)).astype(np.float32)
        session.run(None, {name: x})
        rounds = max(2, 64 // size)
        seconds[size] = cpu(
            lambda x=x, rounds=rounds: [session.run(None, {name: x}) for _ in range(rounds)], rounds * size
        )
    best = min(seconds, key=lambda size: seconds[size])
    print("inference, CPU ms per image:", {k: round(1000 * v, 1) for k, v in seconds.items()})
    return best, seconds[best]


def both(path: Path, files: list[Path], batch: int) -> float:
    """Return the CPU seconds per image when decoding and inference run at the same time: they share caches, and are slower."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options)
    feed = {session.get_inputs()[0].name: np.zeros((batch, 3, 224, 224), np.float32)}
    session.run(None, feed)

    def work() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            coming = [
                pool.submit(lambda file: worker.decoded(file.read_bytes(), "image", 224), file) for file in files
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
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="xcam-batch-"))
    try:
        (folder / "images").mkdir()
        files = jpegs(folder / "images", options.images)
        path = resnet(folder)
        data = [file.read_bytes() for file in files[:DIFFERENT]]
        print(f"{DIFFERENT} images, {np.mean([len(d) for d in data]) / 1e6:.1f} MB each; {os.cpu_count()} cores")
        best, model = inference(path)
        decoding = cpu(lambda: [worker.decoded(d, "image", 224) for d in data], len(data))
        print(
            f"decoding at an eighth: {1000 * decoding:.1f} ms of CPU; inference in batches of {best}: {1000 * model:.1f} ms"
        )
        layer = [n.name for n in xcam.load(path).layers if n.shape[1:] == (7, 7)][-1]
        least = both(path, files, best)
        print(f"both at the same time, without xcam: {1000 * least:.1f} ms of CPU per image")
        before = psutil.Process().memory_info().rss
        start, spent = time.monotonic(), os.times()
        xcam.batch(
            path, str(folder / "images"), out=folder / "out", load_options={"preprocess": "torch"}, layer=layer, batch=best,
            engine=options.engine,
        )  # fmt: skip
        wall = time.monotonic() - start
        after = os.times()
        used = (after.user + after.system - spent.user - spent.system) / options.images
        allowed = (os.cpu_count() or 1) / (model + decoding)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{options.engine}: {options.images / wall:.2f} images per second in {wall:.1f} s; {allowed:.2f} possible: {options.images / wall / allowed:.3f}"
        )
        print(
            f"CPU per image {1000 * used:.1f} ms: {1000 * (used - model - decoding):.1f} ms more than the two alone, {1000 * (used - least):.1f} more than both at the same time"
        )
        print(f"peak {peak:.0f} MB; {before / 2**20:.0f} MB before, model file {path.stat().st_size / 2**20:.0f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
