"""Compute measures of trust with other packages, for a small network and generated maps; see README.md.

    python make_trust.py torch     creates trust.npz: Quantus and pytorch-grad-cam
    python make_trust.py keras     adds xplique

No code is copied: the packages are called, and the values that their functions return are stored.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"TQDM_DISABLE": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
from make import _declared, batch, twin, weights

FILE = Path(__file__).parent / "trust.npz"
CASE, CLASSES = "smooth", (4, 3)
PERCENT = (10, 30, 50, 70, 90)
STEPS = 14
Numbers = dict[str, np.ndarray]


def maps() -> np.ndarray:
    """Return two maps [2, 20, 28] of waves, ≥ 0, with the maximum 1 and without equal values."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[:20, :28]
    waves = [
        sum(np.sin(rng.uniform(0.1, 0.4) * y + rng.uniform(0.1, 0.4) * x + rng.uniform(0, 6)) for _ in range(3))
        for _ in range(2)
    ]
    result = np.array(waves) - np.min(waves, axis=(1, 2), keepdims=True) + rng.uniform(0, 0.01, (2, 20, 28))
    return (result / result.max(axis=(1, 2), keepdims=True)).astype(np.float32)


def masks() -> np.ndarray:
    """Return a rectangle for each map: the first contains the map's maximum, the second does not."""
    result = np.zeros((2, 20, 28), bool)
    y, x = np.unravel_index(int(maps()[0].argmax()), (20, 28))
    result[0, max(y - 3, 0) : y + 4, max(x - 2, 0) : x + 6] = True
    y, x = np.unravel_index(int(maps()[1].argmin()), (20, 28))
    result[1, max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5] = True
    return result


def sense(x: np.ndarray) -> np.ndarray:
    """Return an explanation without a network, [N, H, W] for [N, 3, H, W]: the distance from the mean colour."""
    return np.abs(x - x.mean(axis=(2, 3), keepdims=True)).max(axis=1)


def noises(x: np.ndarray, n: int, radius: float) -> list[np.ndarray]:
    """Return noise, uniform in ± radius times the range of each image, the same for all."""
    rng = np.random.default_rng(5)
    spread = (radius * np.ptp(x, axis=(1, 2, 3), keepdims=True)).astype(np.float32)
    return [spread * rng.uniform(-1, 1, x.shape[1:]).astype(np.float32) for _ in range(n)]


def pytorch_grad_cam() -> Numbers:
    """Return probabilities of images without their highest and lowest pixels, these images, and other measures."""
    import torch
    from networks import build

    if not _declared:  # torchvision expects two operators that a CPU build of torch lacks; nothing here calls them
        _declared.append(torch.library.Library("torchvision", "DEF"))
        _declared[0].define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared[0].define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from pytorch_grad_cam.metrics import arcc, cam_mult_image, road

    module = build(CASE, weights(CASE))
    x, heat = torch.tensor(batch()), maps()
    targets = [lambda output, c=c: output.softmax(-1)[c] for c in CLASSES]
    result: Numbers = {}
    for name, kind in (("morf", road.ROADMostRelevantFirst), ("lerf", road.ROADLeastRelevantFirst)):
        # The package's argument is the percentile from which pixels are removed: 90 removes the highest tenth.
        for percent in PERCENT:
            metric = kind(percentile=100 - percent)
            metric.perturbation.imputer.noise = 0
            scores, seen = metric(x, heat, targets, module, return_visualization=True, return_diff=False)
            result[f"{name}/{percent}"] = scores
            if percent == 50:
                result[f"{name}/images"] = seen.numpy()
    auto = road.ROADMostRelevantFirst(percentile="auto")
    auto.perturbation.imputer.noise = 0
    result["auto/images"] = auto(x, heat, targets, module, return_visualization=True)[1].numpy()
    result["drop"] = cam_mult_image.DropInConfidence()(x, heat[:, None], targets, module)
    result["increase"] = cam_mult_image.IncreaseInConfidence()(x, heat[:, None], targets, module)
    result["complexity"] = arcc.Complexity()(heat)
    result["correlation"] = arcc.batch_pearson_coherency(heat, heat[::-1])
    with torch.no_grad():
        result["clean"] = module(x).softmax(-1).numpy()[range(2), CLASSES]
        result["masked"] = module(x * torch.tensor(heat)[:, None]).softmax(-1).numpy()[range(2), CLASSES]
    return result


def quantus() -> Numbers:
    """Return localisation, sensitivity, imputation, rank correlation and entropy."""
    import quantus as peer
    from networks import build
    from quantus.functions.complexity_func import discrete_entropy
    from quantus.functions.perturb_func import noisy_linear_imputation
    from quantus.functions.similarity_func import correlation_spearman

    module = build(CASE, weights(CASE))
    x, heat, where = batch(), maps(), masks()
    plain = {"disable_warnings": True, "normalise": False, "abs": False, "return_aggregate": False}
    arguments = {"model": module, "x_batch": x, "y_batch": np.array(CLASSES), "a_batch": heat[:, None]}
    arguments |= {"s_batch": where[:, None], "channel_first": True, "softmax": True}

    def ask(metric: Any, **changes: Any) -> np.ndarray:
        return np.asarray(metric(**(arguments | changes)), np.float64)

    empty = where[:, None] & np.array([True, False])[:, None, None, None]
    kept = list(noises(x, 8, 0.02))
    sensitive = peer.MaxSensitivity(
        nr_samples=8,
        perturb_func=lambda arr, **_: arr + kept.pop(0).reshape(arr.shape),
        **plain,
    )
    half = [np.argsort(-h.ravel(), kind="stable")[: h.size // 2] for h in heat]
    return {
        "pointing": ask(peer.PointingGame(**plain)),
        "pointing/empty": ask(peer.PointingGame(**plain), s_batch=empty),
        "mass": ask(peer.RelevanceMassAccuracy(**plain)),
        "mass/empty": ask(peer.RelevanceMassAccuracy(**plain), s_batch=empty),
        "rank": ask(peer.RelevanceRankAccuracy(**plain)),
        "localisation": ask(peer.AttributionLocalisation(max_size=1e9, positive_attributions=True, **plain)),
        "localisation/weighted": ask(
            peer.AttributionLocalisation(weighted=True, max_size=1e9, positive_attributions=True, **plain)
        ),
        "sensitivity": ask(
            sensitive, a_batch=sense(x)[:, None], explain_func=lambda inputs, **_: sense(np.asarray(inputs))[:, None]
        ),
        "imputed": np.stack(
            [noisy_linear_imputation(a.astype(np.float64), i, noise=0) for a, i in zip(x, half, strict=True)]
        ),
        "spearman": np.array([correlation_spearman(heat[0].ravel(), heat[1].ravel())]),
        "entropy": np.array([discrete_entropy(a=h.ravel(), x=h.ravel()) for h in heat]),
    }


def xplique() -> Numbers:
    """Return probabilities along deletion and insertion, drop and increase, of the network in Keras."""
    import tensorflow as tf
    from xplique.metrics import AverageDropMetric, AverageIncreaseMetric, Deletion, Insertion

    model = twin(CASE, weights(CASE))
    x = np.ascontiguousarray(np.moveaxis(batch(), 1, -1))
    wanted = np.eye(5, dtype=np.float32)[list(CLASSES)]

    result: Numbers = {}
    for n in range(2):
        one = (model, x[n : n + 1], wanted[n : n + 1])
        for name, kind in (("deletion", Deletion), ("insertion", Insertion)):
            start = x[n : n + 1].mean(axis=(1, 2), keepdims=True) * np.ones_like(x[n : n + 1])
            metric = kind(*one, baseline_mode=lambda _, start=start: start, steps=STEPS, activation="softmax")
            curve = metric.detailed_evaluate(maps()[n : n + 1])
            result[f"{name}/{n}/counts"] = np.array(list(curve))
            result[f"{name}/{n}/curve"] = np.array(list(curve.values()))
            result[f"{name}/{n}/area"] = np.array(metric.evaluate(maps()[n : n + 1]))
    for name, kind in (("drop", AverageDropMetric), ("increase", AverageIncreaseMetric)):
        metric = kind(model, x, wanted, activation="softmax")
        result[name] = metric.detailed_evaluate(tf.constant(x), tf.constant(wanted), tf.constant(maps()[..., None]))
    return result


def from_torch() -> None:
    """Create the file."""
    kept: Numbers = {"maps": maps(), "masks": masks(), "classes": np.array(CLASSES)}
    for peer, result in (("pytorch-grad-cam", pytorch_grad_cam()), ("quantus", quantus())):
        kept |= {f"{peer}/{key}": np.asarray(value) for key, value in result.items()}
    packages = {"pytorch-grad-cam": "grad-cam", "quantus": "quantus", "torch": "torch"}
    kept["versions"] = np.array([f"{name} {version(package)}" for name, package in packages.items()])
    np.savez_compressed(FILE, **kept)


def from_keras() -> None:
    """Add the values of xplique."""
    with np.load(FILE) as stored:
        kept = {key: stored[key] for key in stored if not key.startswith("xplique/")}
    kept |= {f"xplique/{key}": np.asarray(value) for key, value in xplique().items()}
    others = [text for text in kept["versions"] if not str(text).startswith(("xplique", "tensorflow", "keras"))]
    kept["versions"] = np.array(
        [*others, *(f"{name} {version(name)}" for name in ("xplique", "tensorflow", "keras"))]
    )
    np.savez_compressed(FILE, **kept)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"torch": from_torch, "keras": from_keras}[sys.argv[1]]()
