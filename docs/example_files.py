"""Write the images and models that the pages of the documentation use into the current folder.

    python CLONE/docs/example_files.py

The models are the small trained network of xcam, in each installed framework; nothing is downloaded. The tests of the
documentation use the same functions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from xcam.images import reading, video, writing
from xcam.models import demo
from xcam.models.demo.scenes import CLASSES, scene


def images() -> None:
    """Images: photo.jpg (a star) and copies of it, two.png (a star and a ring), and images/ with three."""
    star = reading.read(demo.image_paths()[3])
    for name in ("image.jpg", "photo.jpg", "a.jpg", "b.jpg"):
        writing.write(Path(name), star)
    writing.write(Path("two.png"), scene(np.random.default_rng(7), [3, 5], 256).image)
    Path("images").mkdir(exist_ok=True)
    for path in demo.image_paths()[:3]:
        shutil.copy(path, Path("images", path.name))


def clip() -> None:
    """clip.mp4: a window that moves over a scene, from a star to a ring, in three seconds."""
    wide = scene(np.random.default_rng(52), [3, 5], 384).image
    steps = np.linspace(0, 1, 30)
    with video.writing("clip.mp4", 10, len(steps)) as write:
        for k, step in enumerate(steps):
            top, left = round(128 * (1 - step)), round(128 * step)
            write(wide[top : top + 256, left : left + 256], (k + 1) / 10)


def labels() -> None:
    """shapes.txt: the class labels of the demo network."""
    Path("shapes.txt").write_text("\n".join(CLASSES) + "\n")


def keras_file() -> None:
    """shapes.keras: the demo network."""
    import xcam_keras.backend  # noqa: F401  # first: it silences TensorFlow
    from xcam_keras.demo import build

    build()[0].save("shapes.keras")


def onnx_file() -> None:
    """shapes.onnx: the demo network."""
    import onnx

    from xcam_onnx.demo import build

    onnx.save(build(), "shapes.onnx")


def quantised_file() -> None:
    """shapes-int8.onnx: the demo network, quantised by ONNX Runtime with the three images of images/."""
    from onnxruntime import quantization

    import xcam
    from xcam.images.batches import batch

    onnx_file()
    model = xcam.load("shapes.onnx")
    size, scaling = (128, 128), xcam.load("demo", backend="onnx").input.preprocessing
    images = [reading.read(path) for path in demo.image_paths()]
    batches = iter([{"image": batch([image], model.input, size, scaling)} for image in images])

    class Images(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    quantization.quantize_static("shapes.onnx", "shapes-int8.onnx", Images(), per_channel=True)


def faulty_file() -> None:
    """shapes-faulty.onnx: the quantised network with the range of conv3 ten times too narrow."""
    import onnx
    from onnx import numpy_helper

    quantised_file()
    model = onnx.load("shapes-int8.onnx")
    (node,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "conv3")
    (scale,) = (t for t in model.graph.initializer if t.name == node.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / np.float32(10), scale.name))
    onnx.save(model, "shapes-faulty.onnx")


def asinh_file() -> None:
    """asinh.onnx: the demo network with Asinh, an operator without a rule, behind conv5."""
    import onnx
    from onnx import helper

    from xcam_onnx.demo import build

    model = build()
    mean = next(node for node in model.graph.node if "conv5" in node.input)
    mean.input[0] = "asinh"
    index = list(model.graph.node).index(mean)
    model.graph.node.insert(index, helper.make_node("Asinh", ["conv5"], ["asinh"], "asinh"))
    onnx.save(model, "asinh.onnx")


def search_file() -> None:
    """search.onnx: the demo network with a second input, the shape that it looks for; star.json and ring.json."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from xcam_onnx.demo import build

    model = build()
    model.graph.name = "search"
    softmax = model.graph.node[-1]
    model.graph.input.append(helper.make_tensor_value_info("query", TensorProto.FLOAT, ["batch", len(CLASSES)]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "columns"))
    del model.graph.node[-1]
    model.graph.node.append(helper.make_node("Mul", [softmax.input[0], "query"], ["asked"], "asked"))
    model.graph.node.append(helper.make_node("ReduceSum", ["asked", "columns"], ["score"], "score"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1]))
    del model.metadata_props[:]
    onnx.save(model, "search.onnx")
    for name in ("star", "ring"):
        Path(f"{name}.json").write_text(str([int(other == name) for other in CLASSES]))


def embeddings_file() -> None:
    """texts.npz: the embeddings of texts, for the demo network as an encoder of images."""
    texts = [f"a drawing of a {name}" for name in CLASSES]
    np.savez("texts.npz", embeddings=np.eye(len(CLASSES), dtype=np.float32), texts=np.array(texts), scale=20.0)


def torch_module() -> None:
    """my_models.py with the demo network as a class, and its weights in shapes.pt."""
    import torch

    from xcam_torch.demo import build

    torch.save(build().state_dict(), "shapes.pt")
    Path("my_models.py").write_text(MY_MODELS)


MY_MODELS = '''
from collections import OrderedDict

from torch import nn


def block(into, out, kernel):
    return nn.Sequential(nn.Conv2d(into, out, kernel, padding=kernel // 2), nn.ReLU())


class Shapes(nn.Sequential):
    """The demo network."""

    def __init__(self):
        super().__init__(
            OrderedDict(
                conv1=block(3, 12, 5),
                pool1=nn.MaxPool2d(2),
                conv2=block(12, 24, 3),
                pool2=nn.MaxPool2d(2),
                conv3=block(24, 48, 3),
                pool3=nn.MaxPool2d(2),
                conv4=block(48, 64, 3),
                conv5=block(64, 64, 3),
                mean=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                scores=nn.Sequential(nn.Linear(64, 6), nn.Softmax(dim=1)),
            )
        )
'''


def main() -> None:
    """Write the files, and print their names."""
    before = set(Path().iterdir())
    for make in (
        images,
        clip,
        labels,
        keras_file,
        onnx_file,
        quantised_file,
        faulty_file,
        asinh_file,
        torch_module,
        search_file,
        embeddings_file,
    ):
        try:
            make()
        except ImportError as error:
            print(f"skipped, {error.name} is not installed: {str(make.__doc__).partition(':')[0]}")
    print("wrote", ", ".join(sorted(path.name for path in set(Path().iterdir()) - before)) or "nothing new")


if __name__ == "__main__":
    main()
