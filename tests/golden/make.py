"""Compute maps with other packages, for small networks and generated images; see README.md.

    python make.py torch     creates pooled.npz, signed.npz, smooth.npz, small.npz and large.npz
    python make.py keras     adds tf-keras-vis to pooled.npz and smooth.npz

No code is copied: the packages are called, and the values that their functions return are stored.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"TQDM_DISABLE": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np

HERE = Path(__file__).parent
CASES = ("pooled", "signed", "smooth", "small", "large")
SCALES = {"small": 1e-4, "large": 100.0}
"""The factor of the last Linear of `smooth`: it changes the gradients only, so only Grad-CAM++ is computed."""
TARGETS = {"pooled": ((1, 3), (4, 0))}
"""Sets of targets for a case: a set has a class for each of the two images. Other cases have the first set."""
Numbers = dict[str, np.ndarray]
_declared: list[Any] = []


def images() -> np.ndarray:
    """Return two images, uint8 [2, 20, 28, 3]: waves and noise, from a seed."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:20, :28]
    waves = [
        [np.sin(y * rng.uniform(0.1, 0.7) + x * rng.uniform(0.1, 0.7) + rng.uniform(0, 6)) for _ in range(3)]
        for _ in range(2)
    ]
    noisy = 128 + 70 * np.moveaxis(np.array(waves), 1, -1) + rng.normal(0, 20, (2, 20, 28, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def batch() -> np.ndarray:
    """Return the images as the networks take them: float32 [2, 3, 20, 28], 0…255."""
    return np.ascontiguousarray(np.moveaxis(images(), -1, 1)).astype(np.float32)


def weights(case: str) -> Numbers:
    """Return weights from a seed, scaled so that the layer's values are about 1 and its gradients about 0.1."""
    seed = "smooth" if case in SCALES else case
    rng = np.random.default_rng(CASES.index(seed))
    first, second = (8, 12) if case == "pooled" else (6, 8)
    w1 = rng.normal(0, 1 / 180, (first, 3, 3, 3))
    result = {
        "conv1.weight": w1,
        "conv1.bias": -128 * w1.sum((1, 2, 3)) + rng.normal(0, 0.2, first),
        "conv2.weight": rng.normal(0, 1.5 / np.sqrt(9 * first), (second, first, 3, 3)),
        "conv2.bias": rng.normal(0, 0.2, second),
    }
    if case != "pooled":
        result |= {
            "conv3.weight": rng.normal(0, 1.5 / np.sqrt(9 * second), (6, second, 3, 3)),
            "conv3.bias": rng.normal(0, 0.2, 6),
            "fc1.weight": rng.normal(0, 2 / np.sqrt(90), (8, 90)),
            "fc1.bias": rng.normal(0, 0.2, 8),
        }
    units = second if case == "pooled" else 8
    scale = SCALES.get(case, 1.0)
    result |= {"fc2.weight": rng.normal(0, scale, (5, units)), "fc2.bias": rng.normal(0, 0.3 * scale, 5)}
    return {name: array.astype(np.float32) for name, array in result.items()}


def recorder(log: list[float], index: int) -> Callable[[Any], Any]:
    """Return a target: the score of a class in one image's outputs, which is also appended to a log."""

    def target(output: Any) -> Any:
        log.append(output[index].item())
        return output[index]

    return target


def pytorch_grad_cam(case: str, classes: tuple[int, ...]) -> Numbers:
    """Return the values of `get_cam_image` within a call (maps before ReLU and resizing), and the weights."""
    import torch
    from networks import build

    if not _declared:  # torchvision expects two operators that a CPU build of torch lacks; nothing here calls them
        _declared.append(torch.library.Library("torchvision", "DEF"))
        _declared[0].define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared[0].define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import pytorch_grad_cam as peer

    methods = {
        "gradcam": peer.GradCAM,
        "gradcam++": peer.GradCAMPlusPlus,
        "xgradcam": peer.XGradCAM,
        "layercam": peer.LayerCAM,
        "hirescam": peer.HiResCAM,
        "gradcam-elementwise": peer.GradCAMElementWise,
        "eigencam": peer.EigenCAM,
        "eigengradcam": peer.EigenGradCAM,
        "fem": peer.FEM,
        "shapleycam": peer.ShapleyCAM,
        "scorecam": peer.ScoreCAM,
        "ablationcam": peer.AblationCAM,
    }
    result: Numbers = {}
    for name, method in methods.items():
        if case in SCALES and name not in ("gradcam", "gradcam++"):
            continue
        module = build(case, weights(case))
        cam = method(module, [module.layer])
        image, weigh = cam.get_cam_image, cam.get_cam_weights
        kept: dict[str, Any] = {}

        def spied(*arguments: Any, key: str, call: Any, kept: dict[str, Any] = kept) -> Any:
            kept[key] = call(*arguments)
            return kept[key]

        cam.get_cam_image = lambda *arguments, call=image: spied(*arguments, key="map", call=call)
        cam.get_cam_weights = lambda *arguments, call=weigh: spied(*arguments, key="weights", call=call)
        log: list[float] = []
        cam(torch.tensor(batch()), [recorder(log, index) for index in classes])
        result[name] = numpy(kept["map"])
        if name in ("shapleycam", "scorecam", "ablationcam"):
            result[f"{name}/weights"] = numpy(kept["weights"])
        if name in ("scorecam", "ablationcam"):
            result[f"{name}/scores"] = np.float32(log[-kept["weights"].size :]).reshape(kept["weights"].shape)
        if name == "gradcam":  # activations and gradients from its hooks, the same for all packages
            result["/activations"] = numpy(cam.activations_and_grads.activations[0])
            result["/gradients"] = numpy(cam.activations_and_grads.gradients[0])
            result["/outputs"] = numpy(cam.outputs)
    return result


def torch_cam(case: str, classes: tuple[int, ...]) -> Numbers:
    """Return maps without ReLU and normalisation. SSCAM has noise without a seed, and is left out."""
    import torch
    import torchcam.methods as peer
    from networks import build

    methods = {
        "gradcam": peer.GradCAM,
        "gradcam++": peer.GradCAMpp,
        "xgradcam": peer.XGradCAM,
        "layercam": peer.LayerCAM,
        "scorecam": peer.ScoreCAM,
        "iscam": peer.ISCAM,
    }
    result: Numbers = {}
    for name, method in methods.items():
        if case in SCALES and name != "gradcam++":
            continue
        module = build(case, weights(case))
        with method(module, "layer") as extractor:
            extractor._relu = False
            outputs = module(torch.tensor(batch()))
            log: list[float] = []
            if name not in ("scorecam", "iscam"):
                cams = extractor(list(classes), outputs, normalized=False)
            else:
                cams = extractor(normalized=False, targets=[recorder(log, index) for index in classes])
            result[name] = numpy(cams[0])
            if name == "scorecam":  # the first scores are those of the images themselves
                result["scorecam/scores"] = np.float32(log[2:]).reshape(2, -1)
    return result


def captum(case: str, classes: tuple[int, ...]) -> Numbers:
    """Return LayerGradCam without its ReLU."""
    import torch
    from captum.attr import LayerGradCam
    from networks import build

    module = build(case, weights(case))
    result = LayerGradCam(module, module.layer).attribute(
        torch.tensor(batch()), torch.tensor(classes), relu_attributions=False
    )
    return {"gradcam": numpy(result)[:, 0]}


def tf_keras_vis(case: str, classes: tuple[int, ...]) -> Numbers:
    """Return maps before ReLU, at the layer's size, of the network in Keras. The ReLU of the gradients stays."""
    import tensorflow as tf
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
    from tf_keras_vis.utils.scores import CategoricalScore

    module = twin(case, weights(case))
    x = np.ascontiguousarray(np.moveaxis(batch(), 1, -1))
    options = {
        "penultimate_layer": "layer",
        "seek_penultimate_conv_layer": False,
        "expand_cam": False,
        "normalize_cam": False,
    }

    def gradients_only(value: Any) -> Any:
        return tf.nn.relu(value) if len(value.shape) == 4 else value

    score = CategoricalScore(list(classes))
    return {
        "/outputs": numpy(module(x)),
        "gradcam": numpy(Gradcam(module)(score, x, activation_modifier=None, **options)),
        "gradcam++": numpy(GradcamPlusPlus(module)(score, x, activation_modifier=gradients_only, **options)),
    }


def twin(case: str, parameters: Mapping[str, np.ndarray]) -> Any:
    """Return the network in Keras, channels last: `pooled` or `smooth`."""
    from keras import Input, Sequential, layers

    wide = case == "pooled"
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5, name="fc2")]
    if not wide:
        head = [
            layers.Conv2D(6, 3, strides=2, name="conv3"),
            layers.Activation("softplus"),
            layers.Permute((3, 1, 2)),
            layers.Flatten(),
            layers.Dense(8, "tanh", name="fc1"),
            layers.Dense(5, name="fc2"),
        ]
    module = Sequential(
        [
            Input((20, 28, 3)),
            layers.Conv2D(8 if wide else 6, 3, padding="same", activation="relu", name="conv1"),
            layers.MaxPooling2D(2),
            layers.Conv2D(12 if wide else 8, 3, name="conv2"),
            layers.Activation("relu", name="layer"),
            *head,
        ]
    )
    for layer in module.layers:
        if layer.weights:
            kernel = parameters[f"{layer.name}.weight"]
            kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
            layer.set_weights([kernel, parameters[f"{layer.name}.bias"]])
    return module


def numpy(value: Any) -> np.ndarray:
    """Return float32, in which the packages compute."""
    value = value.detach() if hasattr(value, "detach") else value
    return np.asarray(value, np.float32)


def from_torch() -> None:
    """Create the files."""
    import torch
    from networks import build

    peers: dict[str, Callable[[str, tuple[int, ...]], Numbers]] = {
        "pytorch-grad-cam": pytorch_grad_cam,
        "torch-cam": torch_cam,
        "captum": captum,
    }
    names = {"pytorch-grad-cam": "grad-cam", "torch-cam": "torchcam", "captum": "captum", "torch": "torch"}
    for case in CASES:
        kept: Numbers = {}
        if case not in SCALES:
            kept = {f"weights/{name}": array for name, array in weights(case).items()} | {"images": images()}
        sets = TARGETS.get(case, TARGETS["pooled"][:1])
        kept["targets"] = np.array(sets)
        kept["versions"] = np.array([f"{name} {version(package)}" for name, package in names.items()])
        for number, classes in enumerate(sets):
            for peer, ask in peers.items():
                if case in SCALES and peer == "captum":
                    continue
                for key, array in ask(case, classes).items():
                    if key == "/gradients":
                        kept[f"gradients/{number}"] = array
                    elif key.startswith("/"):  # the same for every set
                        kept[key[1:]] = array
                    elif number == 0 or not key.startswith(("eigencam", "fem")):  # independent of the target
                        kept[f"{number}/{peer}/{key}"] = array
        again = build(case, weights(case))(torch.tensor(batch()))
        assert np.array_equal(numpy(again), kept["outputs"])
        np.savez_compressed(HERE / f"{case}.npz", **kept)


def from_keras() -> None:
    """Add the values of tf-keras-vis."""
    for case in ("pooled", "smooth"):
        with np.load(HERE / f"{case}.npz") as stored:
            kept = {key: stored[key] for key in stored if "tf-keras-vis" not in key}
        for number, classes in enumerate(kept["targets"].tolist()):
            for key, array in tf_keras_vis(case, classes).items():
                if key == "/outputs":
                    np.testing.assert_allclose(array, kept["outputs"], rtol=0, atol=1e-5)
                else:
                    kept[f"{number}/tf-keras-vis/{key}"] = array
        others = [text for text in kept["versions"] if not str(text).startswith(("tf-", "tensorflow", "keras"))]
        added = [f"{name} {version(name)}" for name in ("tf-keras-vis", "tensorflow", "keras")]
        kept["versions"] = np.array([*others, *added])
        np.savez_compressed(HERE / f"{case}.npz", **kept)


if __name__ == "__main__":
    {"torch": from_torch, "keras": from_keras}[sys.argv[1]]()
