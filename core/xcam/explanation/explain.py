"""`explain`: from a model and a picture to a heatmap, through the contract and the core's arithmetic."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from xcam.contract import (
    DEFAULT_SIZE,
    Activation,
    Array,
    InputSpec,
    Layer,
    Model,
    Outputs,
    Trace,
    one_output,
    preprocessing,
    validation,
)
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import (
    InputError,
    ModelError,
    XcamError,
    XcamWarning,
    ZeroHeatmapWarning,
    first_line,
    keywords_checked,
)
from xcam.explanation import tokens
from xcam.explanation.context import MethodContext, cotangent, pick, require, stack, values
from xcam.explanation.fusion import Fusion, check_fusion, joined
from xcam.explanation.result import Explanation
from xcam.images import batches, reading
from xcam.methods import maps
from xcam.methods.maps import Normalize
from xcam.methods.registry import Method, option_names
from xcam.methods.registry import get as get_method
from xcam.models import layers
from xcam.models.load import by, load
from xcam.targets import Classes, ClassScore, Score, Target, probabilities, scores, several, target

BATCH = 8
"""Pictures in one forward pass: more gain little on a CPU, and cost memory."""

AUGMENTED = [
    (mirrored, factor) for mirrored in (False, True) for factor in (0.9, 1.0, 1.1) if mirrored or factor != 1
]
"""What `augment` adds to the clean picture: whether it is mirrored, and what its values are multiplied by."""

T = TypeVar("T")
ImageSource = str | os.PathLike[str] | reading.Image
Aim = int | str | Target | None
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
) -> Any:
    """Explain where the model looked on an image.

    Args:
        model: The result of `load`, or anything that `load` takes.
        image: A path or an RGB uint8 array [H, W, 3]. A list of these gives a list, run in batches.
        layer: The layer's name; default: the last with spatial axes. Several layers are explained one by one, and
            their maps are fused.
        target: None (the top class), an index, a label or the beginning of one, `top3`, `tiger-zebra` (why the first
            and not the second), or a Target. For one image, a list gives a list. For a list of images: one target for
            all of them, or a list with one entry for each image (each may be a list).
        method: A name from `xcam.list_methods()`.
        method_options: The method's own options, by name.
        score: Explain the class's `logit`, its `probability` or its `log-probability`.
        normalize: `max` (divide by the maximum), `minmax` or `none`.
        augment: Average the maps of the image and of its mirror image, each with its values scaled by 0.9, 1 and 1.1.
        fuse: How the maps of several layers become one: `mean` (the default), `max` or `product`.
        batch: The number of images in one forward pass, at least 1.

    Returns:
        An Explanation; a list of them for a list of targets; for a list of images, a list with one entry for each.

    Raises:
        InputError: The image, layer, target or an option cannot be used.
        ModelError: The model cannot be read, fails, or gives NaN or infinity.
        BackendError: The backend is missing or lacks a capability that the method needs.

    Warns:
        ZeroHeatmapWarning: A heatmap is zero everywhere.
    """
    how = get_method(str(method))
    options = dict(how.checked(method_options or {}))
    maps.normalize(np.zeros((1, 1, 1)), normalize)  # an unknown word is found before the work
    if not isinstance(augment, bool):
        raise InputError(f"augment is {augment!r}; give True or False")
    if fuse is not None and not isinstance(layer, list | tuple):
        raise InputError("fuse joins the maps of several layers; name them as a list")
    check_fusion(fuse or "mean")
    if batch < 1:
        raise InputError(f"batch is {batch}; give 1 or more")
    if not validation.is_model(model):
        model = load(model)
    require(model, how)
    if isinstance(layer, list | tuple):
        if not layer:
            raise InputError("an empty list of layers; name one, or leave it out")
        names = [layers.find(model, name).name for name in layer]
        twice = [name for k, name in enumerate(names) if name in names[:k]]
        if twice:
            raise InputError(f"layer {twice[0]!r} is given twice; name each layer once")
        one = partial(explain, target=target, method=method, method_options=options, score=score)
        one = partial(one, normalize=normalize, augment=augment, batch=batch)
        return joined([one(model, image, layer=name) for name in names], fuse or "mean")
    many = isinstance(image, list | tuple)
    images = list(image) if many else [image]
    if not images:
        return []
    aims, listed = _aims(target, len(images), many, model.labels)
    make = partial(_target, model=model, score=score)
    targets = [[make(aim) for aim in row] for row in aims]
    found: list[list[Explanation]] = []
    place = layers.find(model, layer)
    for rows in _batches(targets, batch):
        found += _within_memory(
            rows,
            lambda part: _explain(
                model, [images[i] for i in part], place, [targets[i] for i in part], how, options, normalize, augment
            ),
        )
    answers = [row if is_list else row[0] for row, is_list in zip(found, listed, strict=True)]
    return answers if many else answers[0]


def _target(aim: Aim, model: Model, score: Score) -> Target:
    return target(aim, score, model.output_activation, model.labels)


def _aims(wanted: Any, count: int, many: bool, labels: Sequence[str] | None) -> tuple[list[list[Aim]], list[bool]]:
    """For each picture the list of what is wanted, and whether it was given as a list."""
    if isinstance(wanted, list | tuple):
        rows: list[Any] = list(wanted) if many else [wanted]
        if len(rows) != count:
            raise InputError(
                f"{len(rows)} targets for {count} pictures; give one target for all, or one for each picture"
            )
    else:
        rows = [wanted] * count
    listed = [isinstance(row, list | tuple) or several(row, labels) is not None for row in rows]
    filled: list[list[Aim]] = [
        [aim for word in (row if isinstance(row, list | tuple) else [row]) for aim in several(word, labels) or [word]]
        for row in rows
    ]
    if not all(filled):
        raise InputError("an empty list of targets; give at least one, or None for the top class")
    return filled, listed


def _batches(targets: list[list[Target]], most: int) -> Iterator[range]:
    """Runs of at most `most` neighbouring pictures that have equally many targets."""
    start = 0
    for stop in range(1, len(targets) + 1):
        if stop == len(targets) or stop - start == most or len(targets[stop]) != len(targets[start]):
            yield range(start, stop)
            start = stop


def _within_memory(rows: range, work: Callable[[range], list[T]]) -> list[T]:
    """`work` on all rows at once; where memory runs out, on halves, and on halves of these, with a line that says so."""
    try:
        return work(rows)
    except MemoryError as error:
        if len(rows) == 1:
            raise
        reason = str(error) or "no more to be had"
    half = len(rows) // 2
    warnings.warn(
        f"out of memory with {len(rows)} pictures at once ({reason}): trying {half}", XcamWarning, stacklevel=3
    )
    return _within_memory(rows[:half], work) + _within_memory(rows[half:], work)


def _explain(
    model: Model,
    sources: list[ImageSource],
    layer: Layer,
    targets: list[list[Target]],
    method: Method,
    options: dict[str, Any],
    normalize: Normalize,
    augment: bool,
) -> list[list[Explanation]]:
    paths = [Path(source) if isinstance(source, str | os.PathLike) else None for source in sources]
    images = [reading.read(s) if isinstance(s, str | os.PathLike) else reading.check(s) for s in sources]
    x = batches.batch(images, model.input, input_size(model.input), _preprocessing(model))
    fixed: list[list[Target]] = []
    own: list[BaseException] = []  # what a target raised: it reaches the caller as it is
    count = len(targets[0]) if "gradients" in method.inputs else 0

    def cotangents(outputs: Outputs) -> list[Outputs]:
        try:
            if not fixed:
                validation.check_rows(model, outputs, len(images))
                fixed.extend([_resolve(t, pick(outputs, [n]), model) for t in row] for n, row in enumerate(targets))
            return [
                stack([cotangent(row[m], pick(outputs, [n])) for n, row in enumerate(fixed)]) for m in range(count)
            ]
        except Exception as error:
            own.append(error)
            raise

    try:
        trace = validation.trace(model, x, layer, cotangents if count else None)
        if not count:
            cotangents(trace.outputs)
    except (XcamError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if error in own:
            raise
        raise ModelError(
            f"{model.name} fails on a batch of {len(images)}: {first_line(error)}; check that it runs without xcam, "
            "and explain the pictures one by one if it takes no batch"
        ) from error
    _check_values(x, trace, model, layer)
    grid = tokens.grid(layer, trace.activations.shape[-1], model.input, x.shape)
    if grid.view(trace.activations).ndim != 4:
        raise ModelError(
            f"layer {layer.name!r} has values of {by(trace.activations.shape[2:])} for each channel, and a map over a "
            "picture needs two axes of space; choose another layer"
        )

    def made(x: Array, trace: Trace) -> list[Array]:
        """For each target the maps [N, *spatial]."""
        return [
            MethodContext(model, layer, grid, x, trace, [row[m] for row in fixed], m)(method, options)
            for m in range(len(targets[0]))
        ]

    cams = made(x, trace)
    if augment:
        others = [cams]
        for mirrored, factor in AUGMENTED:
            changed = _scaled(_mirrored(x, model.input) if mirrored else x, factor)
            found = validation.trace(model, changed, layer, cotangents if count else None)
            _check_values(changed, found, model, layer)
            again = made(changed, found)
            others.append([np.flip(cam, -1) for cam in again] if mirrored else again)
        cams = [np.mean(same, axis=0) for same in zip(*others, strict=True)]
    return [
        [
            _explanation(model, trace, n, fixed[n][m], cams[m][n], images[n], paths[n], layer, method, normalize)
            for m in range(len(cams))
        ]
        for n in range(len(images))
    ]


def input_size(spec: InputSpec) -> tuple[int, int]:
    """(height, width) of the batch that a model with `spec` is given."""
    if spec.size is None:
        return DEFAULT_SIZE
    if len(spec.size) != 2:
        raise ModelError(
            f"the model takes inputs of {by(spec.size)}, not pictures; call model.trace with your own array"
        )
    return spec.size[0], spec.size[1]


def _preprocessing(model: Model) -> Preprocessing:
    how, whole = model.input.preprocessing, not np.issubdtype(np.dtype(model.input.dtype), np.floating)
    if whole and how not in (None, preprocessing.PRESETS["raw"]):
        raise InputError(
            f"{model.name} takes whole numbers ({model.input.dtype}), and {how.name!r} makes fractions; use raw"
        )
    if whole:
        return preprocessing.PRESETS["raw"]
    if how is not None:
        return how
    warnings.warn(
        f"{model.name} does not say how pictures are to be scaled: 'unit' (0…1) is used; choose with preprocess= (--preprocess)",
        XcamWarning,
        stacklevel=4,
    )
    return preprocessing.PRESETS["unit"]


def _mirrored(x: Array, spec: InputSpec) -> Array:
    """The batch, left and right exchanged."""
    return np.ascontiguousarray(np.flip(x, -2 if spec.layout == "channels_last" else -1))


def _scaled(x: Array, factor: float) -> Array:
    """The batch's values times a factor; whole numbers stay so, and pixels."""
    if np.issubdtype(x.dtype, np.integer):
        return np.clip(np.rint(x * factor), 0, 255).astype(x.dtype)
    return x * np.asarray(factor, x.dtype)


def _resolve(aim: Target, outputs: Outputs, model: Model) -> Target:
    if isinstance(aim, ClassScore) and aim.output is None and model.labels is not None:
        count = scores(outputs).shape[1]
        if len(model.labels) != count:
            raise InputError(
                f"there are {len(model.labels)} class names for the {count} classes of {model.name}; give one for each"
            )
    resolve: Callable[[Outputs], Target] | None = getattr(aim, "resolve", None)
    return resolve(outputs) if resolve else aim


def _check_values(x: Array, trace: Trace, model: Model, layer: Layer) -> None:
    """No NaN and no infinity becomes a picture. Raises ModelError."""
    arrays = {"activations": trace.activations, **{f"gradients[{m}]": g for m, g in enumerate(trace.gradients)}}
    for name, array in {"outputs": one_output(trace.outputs), **arrays}.items():
        if not np.isfinite(array).all():
            first = _first_bad_layer(model, x)
            raise ModelError(
                f"{model.name} gives NaN or infinity in its {name} at layer {layer.name!r}"
                f"{f' (the first layer with one is {first!r})' if first else ''}; "
                "check the weights, the preprocessing, and float16 overflow"
            )


def _first_bad_layer(model: Model, x: Array) -> str | None:
    """The first layer, in execution order, whose value on `x` is not finite; None when none is."""
    for found in validation.layers(model):  # one at a time: all at once could fill the memory
        if not np.isfinite(validation.activations(model, x, [found.name])[found.name]).all():
            return found.name
    return None


def _explanation(
    model: Model,
    trace: Trace,
    n: int,
    aim: Target,
    cam: Array,
    image: reading.Image,
    path: Path | None,
    layer: Layer,
    method: Method,
    normalize: Normalize,
) -> Explanation:
    outputs = pick(trace.outputs, [n])
    index = aim.index if isinstance(aim, ClassScore) else None
    of_classes = isinstance(aim, ClassScore | Classes)
    raw = one_output(outputs, aim.output if isinstance(aim, ClassScore | Classes) else None)
    raw = raw[:, None] if raw.ndim == 1 else raw
    if not cam.max() > 0:
        warnings.warn(_zero(path, layer, aim, cam, trace, n), ZeroHeatmapWarning, stacklevel=5)
    return Explanation(
        image=image,
        cam=cam.astype(np.float32, copy=False),
        outputs=raw[0],
        scores=probabilities(raw, _activation(model, aim))[0] if of_classes else raw[0],
        target=aim,
        index=index,
        label=getattr(aim, "name", type(aim).__name__) if index is None else label(model, index),
        score=float(values(aim, outputs, 1)[0]),
        layer=layer.name,
        method=method.name,
        backend=model.backend,
        model=model.name,
        normalize=normalize,
        path=path,
        notes=tuple(model.notes),
        labels=model.labels,
    )


def _activation(model: Model, aim: Target) -> Activation:
    """What was cut off the output that a target of classes reads."""
    if isinstance(aim, ClassScore):
        return aim.activation
    whole, name = model.output_activation, getattr(aim, "output", None)
    return whole.get(name or next(iter(whole))) if isinstance(whole, Mapping) else whole


def label(model: Model, index: int) -> str:
    """The name of a class, or its index in digits where the model has no names."""
    return model.labels[index] if model.labels is not None and index < len(model.labels) else str(index)


def _zero(path: Path | None, layer: Layer, aim: Target, cam: Array, trace: Trace, n: int) -> str:
    """What to tell a user whose heatmap is zero everywhere: which of the likely causes it is."""
    if not np.any(trace.activations[n]):
        cause = "every activation of the layer is zero (dead units, or the wrong preprocessing)"
    elif trace.gradients and not any(np.any(g[n]) for g in trace.gradients):
        cause = "the gradient is zero (a saturated probability: try score='logit'; or an earlier layer)"
    elif np.any(cam):
        cause = "everything at this layer speaks against the class (try another class, layer or method)"
    elif not trace.gradients:
        cause = "to the method no channel says anything (try another layer, method or option)"
    else:
        cause = "gradient and activation never meet (try another layer or method)"
    return f"the heatmap{f' of {path}' if path else ''} is zero everywhere at layer {layer.name!r}: {cause}"
