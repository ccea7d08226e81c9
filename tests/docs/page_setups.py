"""Images, models and names that the pages use, written into the folder where their blocks run.

The models are the demo network, which is trained, in each framework; nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
from example_files import (
    MY_MODELS,
    asinh_file,
    clip,
    embeddings_file,
    faulty_file,
    images,
    keras_file,
    labels,
    onnx_file,
    quantised_file,
    search_file,
    torch_module,
)

Setup = Callable[[], dict[str, Any] | None]
SETUPS: dict[str, tuple[Setup, ...]] = {}


def namespace(page: str) -> dict[str, Any]:
    """Write the files of a page, and return the names that are defined for its blocks."""
    images()
    names: dict[str, Any] = {}
    for setup in SETUPS.get(page, ()):
        names |= setup() or {}
    return names


def missing_frameworks() -> dict[str, Any]:
    """Keras is not installed; torch is installed, but cannot be imported."""
    import sys

    sys.modules["keras"] = None  # type: ignore[assignment]
    Path("torch.py").write_text('raise ImportError("libcudart.so.12: cannot open shared object file")\n')
    return {}


ANIMALS = ("cat", "dog", "lion", "tiger", "zebra", "horse")


def signals() -> dict[str, Any]:
    """Write ecg.onnx, a small model of signals, and signal.npy."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {"filters": (4, 1, 9), "bias": (4,), "matrix": (4, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "filters", "bias"], ["conv"], pads=[4, 4]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "ecg",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1, 500])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "ecg.onnx")
    np.save("signal.npy", rng.normal(size=(1, 500)).astype(np.float32))
    return {}


def readme() -> dict[str, Any]:
    """The files that README.md uses, with the demo network in them."""
    import json

    import keras
    import onnx
    from safetensors.torch import save_file

    import xcam
    from xcam_keras.demo import build as keras_demo
    from xcam_onnx.demo import build as onnx_demo
    from xcam_torch.demo import build as torch_demo

    network = keras_demo()[0]
    network.save("model.keras")
    network.save("vgg.keras")
    onnx.save(onnx_demo(), "vgg.onnx")
    quantised_file()
    Path("shapes-int8.onnx").replace("vgg-int8.onnx")
    larger = onnx_demo()
    for node in larger.graph.node:  # the layer's name and the input size of README.md
        node.input[:] = ["layer4" if name == "conv5" else name for name in node.input]
        node.output[:] = ["layer4" if name == "conv5" else name for name in node.output]
        node.name = "layer4" if node.name == "conv5" else node.name
    for axis in (2, 3):
        larger.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 224
    larger.metadata_props.add(key="xcam.labels", value=json.dumps(ANIMALS))
    onnx.save(larger, "model.onnx")
    Path("labels.txt").write_text("\n".join(ANIMALS), encoding="utf-8")
    torch_module()
    Path("my_models.py").write_text(MY_MODELS + "\n\ndef build():\n    return Shapes()\n")
    save_file(torch_demo().state_dict(), "w.safetensors")

    inputs = keras.Input((64, 64, 3))
    keras.utils.set_random_seed(0)
    inner = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="block5_conv3")(inner)
    backbone = keras.Model(inner, x, name="backbone")
    outputs = keras.layers.Dense(6)(keras.layers.GlobalAveragePooling2D()(backbone(inputs)))
    return {"model": xcam.load(keras.Model(inputs, outputs), preprocess="unit", labels=ANIMALS)}


README_NOT_RUN = {
    "xcam --backend keras image.jpg": "it downloads ImageNet weights",
    "xcam -m hf:microsoft/resnet-50 image.jpg": "it downloads weights from the Hugging Face hub",
}
"""Commands of README.md that are not run, with the reasons: README.md has no marks."""


def demo_model() -> dict[str, Any]:
    """Define `model`, the demo network, and `xcam`."""
    import xcam

    return {"xcam": xcam, "model": xcam.load("demo", "onnx")}


SETUPS |= {
    "README.md": (readme, signals),
    "docs/tutorial/first-heatmap.md": (labels, keras_file, onnx_file, torch_module),
    "docs/index.md": (demo_model,),
    "docs/reference/formats.md": (demo_model,),
    "docs/troubleshooting.md": (onnx_file, asinh_file, missing_frameworks, demo_model),
    "docs/reference/methods.md": (demo_model,),
    "docs/how-to/export.md": (labels, onnx_file),
    "docs/how-to/several-inputs.md": (search_file, torch_module),
    "docs/how-to/text-prompts.md": (onnx_file, embeddings_file),
    "docs/how-to/video.md": (clip,),
    "docs/how-to/onnx-file.md": (labels, onnx_file),
    "docs/how-to/quantised.md": (onnx_file, quantised_file),
    "docs/how-to/openvino.md": (onnx_file,),
    "docs/how-to/blame.md": (onnx_file, quantised_file),
    "docs/how-to/repair.md": (onnx_file, faulty_file),
    "docs/how-to/compare-in-ci.md": (onnx_file, torch_module),
    "docs/how-to/write-an-onnx-rule.md": (asinh_file,),
}
