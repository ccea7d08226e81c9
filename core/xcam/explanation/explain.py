"""`explain`: from a model and an image to a heatmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, overload

from xcam.contract import InputSpec, Layer, Model, validation
from xcam.errors import InputError, keywords_checked
from xcam.explanation.context import require
from xcam.explanation.fusion import Fusion, check_fusion, fuse_all
from xcam.explanation.likeness import likeness
from xcam.explanation.recognition import is_open, task_of
from xcam.explanation.requests import Aim, aims_of_images, batches, within_memory
from xcam.explanation.result import Explanation
from xcam.explanation.run import ImageSource, explain_batch
from xcam.explanation.samples import opened_for, shapes, with_samples
from xcam.explanation.scales import Scales, default_scales
from xcam.explanation.settings import BATCH, Settings
from xcam.explanation.settings import settings as checked_settings
from xcam.methods.inputs import GRADIENTS
from xcam.methods.maps import Normalize
from xcam.methods.registry import option_names
from xcam.models import layers
from xcam.models.load import load, with_output
from xcam.targets import Score, Target, Task, read_outputs
from xcam.targets import target as parsed_target

LayerChoice = str | Layer | Sequence[str | Layer] | None


@overload
def explain(
    model: Any,
    image: ImageSource,
    *,
    layer: LayerChoice = ...,
    target: Aim = ...,
    method: str = ...,
    method_options: Mapping[str, Any] | None = ...,
    score: Score = ...,
    normalize: Normalize = ...,
    augment: bool = ...,
    fuse: Fusion | None = ...,
    batch: int = ...,
    output: str | None = ...,
) -> Explanation: ...
@overload
def explain(
    model: Any,
    image: Sequence[ImageSource],
    *,
    layer: LayerChoice = ...,
    target: Aim | Sequence[Aim | Sequence[Aim]] = ...,
    method: str = ...,
    method_options: Mapping[str, Any] | None = ...,
    score: Score = ...,
    normalize: Normalize = ...,
    augment: bool = ...,
    fuse: Fusion | None = ...,
    batch: int = ...,
    output: str | None = ...,
) -> list[Any]: ...
@overload
def explain(
    model: Any,
    image: ImageSource,
    *,
    layer: LayerChoice = ...,
    target: Sequence[Aim] = ...,
    method: str = ...,
    method_options: Mapping[str, Any] | None = ...,
    score: Score = ...,
    normalize: Normalize = ...,
    augment: bool = ...,
    fuse: Fusion | None = ...,
    batch: int = ...,
    output: str | None = ...,
) -> list[Explanation]: ...
@keywords_checked(option_names)
def explain(
    model: Any,
    image: Any,
    *,
    layer: Any = None,
    target: Any = None,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    score: Score = "logit",
    normalize: Normalize = "max",
    augment: bool = False,
    fuse: Fusion | None = None,
    batch: int = BATCH,
    output: str | None = None,
) -> Any:
    """Explain where the model looked on an image.

    Args:
        model: The result of `load`, or anything that `load` takes.
        image: A path or an RGB uint8 array [H, W, 3]; or an array as the model takes it (a signal, a volume, channels that
            are not RGB), with or without the batch axis, or its .npy or .npz file. A list of these, or an array of
            several rows, gives a list, run in batches.
        layer: The layer's name; default: the last with spatial axes. Several layers are explained one by one, and
            their maps are fused.
        target: None (the top class), an index, a label or the beginning of one, `top3`, `tiger-zebra` (why the first
            and not the second), `like:other.jpg` (the similarity to another image, for models of embeddings), or a Target. For one image, a list gives a list. For a list of images: one target for
            all of them, or a list with one entry for each image (each may be a list).
        method: A name from `xcam.list_methods()`.
        method_options: The method's own options, by name.
        score: Explain the class's `logit`, its `probability` or its `log-probability`.
        normalize: `max` (divide by the maximum), `minmax` or `none`.
        augment: Average the maps of the image and of its mirror image, each with its values scaled by 0.9, 1 and 1.1.
        fuse: How the maps of several layers become one: `mean` (the default), `max` or `product`.
        batch: The number of images in one forward pass, at least 1.
        output: The name of the output that is explained, for models with several; default: as for `load`.

    Returns:
        An Explanation; a list of them for a list of targets; for a list of images, a list with one entry for each.

    Raises:
        InputError: The image, layer, target or an option cannot be used.
        ModelError: The model cannot be read, fails, or gives NaN or infinity.
        BackendError: The backend is missing or lacks a capability that the method needs.

    Warns:
        ZeroHeatmapWarning: A heatmap is zero everywhere.
    """
    settings = checked_settings(method, method_options, score, normalize, augment, batch)
    if fuse is not None and not isinstance(layer, list | tuple):
        raise InputError("fuse applies to several layers; give layer= a list")
    check_fusion(fuse or "mean")
    if not validation.is_model(model):
        model = load(model)
    if output is not None:
        model = with_output(model, output)
    require(model, settings.method)
    image = with_samples(model, image)
    one_layer = partial(explain_at, model, None, image, target=target, settings=settings)
    if not isinstance(layer, list | tuple):
        return one_layer(layer=layer)
    opened = opened_for(model, image[0] if isinstance(image, list) and image else image)
    return fuse_all([one_layer(layer=name) for name in _distinct_layers(opened, layer)], fuse or "mean")


def explain_at(
    model: Model, spec: InputSpec | None, image: Any, *, layer: str | Layer | None, target: Any, settings: Settings
) -> Any:
    """Explain at one layer, with a given input specification: `explain` without checks of the options.

    The images are not copied. Without a specification it is the model's own, as known once its layers are.
    """
    is_list = isinstance(image, list | tuple)
    images = list(image) if is_list else [image]
    if not images:
        return []
    aims, listed = aims_of_images(target, len(images), is_list, model.labels)
    known: dict[str, Any] = {}
    for aim in {aim for row in aims for aim in row if isinstance(aim, str)}:
        known[aim] = likeness(aim, model, spec)
    aims = [[known[aim] if isinstance(aim, str) else aim for aim in row] for row in aims]
    activation = opened_for(model, images[0]).output_activation
    task = task_of(model, images[0]) if any(is_open(aim) for row in aims for aim in row) else None
    labels = model.labels if task is None else task.labels(model.labels)
    targets = [[parsed_target(aim, settings.score, activation, labels) for aim in row] for row in aims]
    outputs = read_outputs(target for row in targets for target in row)
    gradients = bool(GRADIENTS & set(settings.method.inputs))
    rows: list[list[Explanation]] = []
    for part in batches(targets, settings.batch, shapes(images)):
        opened = opened_for(model, images[part.start])
        scales = default_scales(opened, task, images[0]) if layer is None and task is not None else Scales()
        at = scales.layers or [layers.find(opened, layer, outputs, gradients)]
        if layer is None and not part.start:
            layers.warn_if_coarse(opened, at[0], outputs)
        # The first run may have corrected the input.
        run_spec = spec if opened is model and spec is not None else opened.input
        run = partial(_explain_part, opened, run_spec, images, at, targets, settings, task, scales.exclusive)
        rows += within_memory(part, run)
    results = [row if as_list else row[0] for row, as_list in zip(rows, listed, strict=True)]
    return results if is_list else results[0]


def _explain_part(
    model: Model,
    spec: InputSpec,
    images: Sequence[Any],
    at: Sequence[Layer],
    targets: Sequence[Sequence[Target]],
    settings: Settings,
    task: Task | None,
    exclusive: bool,
    part: range,
) -> list[list[Explanation]]:
    batch = [images[i] for i in part], at, [targets[i] for i in part]
    return explain_batch(model, spec, *batch, settings, task, exclusive)


def _distinct_layers(model: Model, names: Sequence[str | Layer]) -> list[str]:
    """Return the names of the layers. Raises InputError where there is none, or one is given twice."""
    if not names:
        raise InputError("an empty list of layers; give at least one, or None for the default layer")
    resolved = [layers.find(model, name).name for name in names]
    for k, name in enumerate(resolved):
        if name in resolved[:k]:
            raise InputError(f"layer {name!r} is given twice; give each layer once")
    return resolved
