"""Recognition of a model's task from its outputs: their shapes, names and values, and the number of labels.

Whatever the outputs leave open, and matters, is a caution: a line that names the option which states it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np

from xcam.contract import Activation, Array, Outputs, one_output
from xcam.errors import InputError, nearest
from xcam.targets.boxes import Corners
from xcam.targets.classes import is_distribution, is_single
from xcam.targets.layouts import BoxLayout, Link, MapLayout, linked

Kind = Literal["classification", "multi-label", "detection", "segmentation", "embedding", "unknown"]
ALIASES = {
    "classify": "classification",
    "detect": "detection",
    "pose": "detection",
    "obb": "detection",
    "segment": "segmentation",
}
"""Other names of tasks, as files state them."""
CORNERS: dict[str, Corners] = {
    "xyxy": "xyxy",
    "xywh": "cxcywh",
    "cxcywh": "cxcywh",
    "ltwh": "ltwh",
    "yxyx": "yxyx",
}
COCO = 80
"""The number of classes by which 4 + 80 and 5 + 80 columns are distinguished, where it is not stated."""
KNOWN = {92: True, 251: True, 80: False, 91: False, 365: False}
"""Numbers of classes of models with queries: whether the last means no object (DETR), or each class has a sigmoid."""
STRIDES = (8, 16, 32)
"""The strides of the scales of YOLO."""
QUERIES = 1000
"""Detectors with at most this many boxes choose them by queries, and have no objectness."""
SHARE = 0.8
"""The share of plausible boxes from which four columns are taken for boxes."""
BACKGROUND = ("background", "__background__", "bg", "no object", "no-object", "no_object", "unlabeled", "void")
TERMS = (
    "xyxy, xywh (centre and size), ltwh, yxyx; relative, pixels; objectness, no-objectness; boxes-first, boxes-last; "
    "selected; classes=N; background=N, no-background; softmax, sigmoid, probabilities; boxes=NAME, scores=NAME"
)


@dataclass(frozen=True)
class Task:
    """The meaning of a model's outputs."""

    kind: Kind
    count: int = 0
    """The number of classes, or of the numbers of an embedding."""
    boxes: BoxLayout | None = None
    """For detection, where the boxes are."""
    map: MapLayout | None = None
    """For segmentation, where the classes are."""
    size: tuple[int, ...] = ()
    """The size of the input, in which boxes are measured."""
    cautions: tuple[str, ...] = ()
    """Lines on points that the outputs leave open."""

    @property
    def text(self) -> str:
        """The task for a reader, as in `detection, 80 classes, 8400 boxes, xywh, no objectness`."""
        if self.boxes is not None or self.map is not None:
            return f"{self.kind}, {(self.boxes or self.map).text}"  # type: ignore[union-attr]
        unit = {"embedding": "number", "multi-label": "label"}.get(self.kind, "class")
        plural = "es" if unit == "class" else "s"
        return f"{self.kind}, {self.count} {unit}{'' if self.count == 1 else plural}" if self.count else self.kind

    @property
    def background(self) -> int | None:
        """The class of the background."""
        layout = self.boxes or self.map
        return None if layout is None else layout.background

    def labels(self, labels: Sequence[str] | None) -> Sequence[str] | None:
        """Return a label for each class of the output: labels may leave out the background, which is called so."""
        layout = self.boxes or self.map
        if labels is None and self.boxes is not None and self.boxes.selected and not self.boxes.classes:
            return ["object"]  # no output has the numbers of the classes
        if layout is None or layout.background is None:
            return labels
        if labels is None:
            return [str(i) if i != layout.background else "background" for i in range(layout.classes)]
        if len(labels) != layout.classes - 1:
            return labels
        return [*labels[: layout.background], "background", *labels[layout.background :]]


@dataclass(frozen=True)
class Statement:
    """A task and its layout as the caller or the file states them."""

    kind: str | None = None
    corners: Corners | None = None
    relative: bool | None = None
    objectness: bool | None = None
    axis: int | None = None
    classes: int | None = None
    background: int | None = None
    has_background: bool | None = None
    link: Link | None = None
    selected: bool | None = None
    boxes: str | None = None
    output: str | None = None


def statement(task: str | None = None, boxes: str | None = None) -> Statement:
    """Return the statement in `task=` and `boxes=`.

    Args:
        task: A kind of task, or `detect`, `segment`, `classify`, `pose`, `obb`.
        boxes: Terms separated by commas: see TERMS.

    Raises:
        InputError: A term is unknown, or contradicts another.
    """
    kind = None if task is None else ALIASES.get(task, task)
    if kind is not None and kind not in get_args(Kind):
        raise InputError(f"unknown task {task!r}; {nearest(task, get_args(Kind), 6)}")
    if boxes is not None and not isinstance(boxes, str):
        raise InputError(f"cannot use boxes={boxes!r}; give terms separated by commas: {TERMS}")
    values: dict[str, Any] = {"objectness": False} if task == "obb" else {}
    for term in filter(None, (part.strip() for part in (boxes or "").split(","))):
        for key, value in _stated(term).items():
            if values.setdefault(key, value) != value:
                raise InputError(f"{term!r} contradicts another term of boxes={boxes!r}; give one of them")
    if boxes and kind not in (None, "detection", "segmentation"):
        raise InputError(f"boxes={boxes!r} is for detectors, and the task is {task!r}; leave one out")
    return Statement(kind="detection" if boxes and task is None else task if task == "segment" else kind, **values)


def _stated(term: str) -> dict[str, Any]:
    """Return the meaning of one term of `boxes=` states. Raises InputError."""
    name, equals, value = term.partition("=")
    plain = name.strip().lower()
    if not equals:
        if plain in CORNERS:
            return {"corners": CORNERS[plain]}
        fixed: dict[str, dict[str, Any]] = {
            "relative": {"relative": True},
            "pixels": {"relative": False},
            "objectness": {"objectness": True},
            "no-objectness": {"objectness": False},
            "boxes-first": {"axis": 1},
            "boxes-last": {"axis": 2},
            "selected": {"selected": True},
            "no-background": {"has_background": False},
            "softmax": {"link": "softmax"},
            "sigmoid": {"link": "sigmoid"},
            "probabilities": {"link": "identity"},
        }
        if plain in fixed:
            return fixed[plain]
    elif plain in ("boxes", "scores"):
        return {"boxes" if plain == "boxes" else "output": value.strip()}
    elif plain in ("classes", "background") and value.strip().lstrip("-").isdigit():
        return {"has_background": True, plain: int(value)} if plain == "background" else {plain: int(value)}
    raise InputError(f"unknown term {term!r} in boxes=; known: {TERMS}")


def recognised(
    outputs: Outputs,
    size: Sequence[int],
    activation: Activation = None,
    labels: Sequence[str] | None = None,
    stated: Statement | None = None,
    chosen: str | None = None,
    last: bool = False,
) -> Task:
    """Return the task of a model.

    Args:
        outputs: Its outputs for one image; a mapping where there are several, the main one first.
        size: The size of its input: (H, W) for images.
        activation: The activation that was cut off the outputs, as `Model.output_activation`.
        labels: The model's labels.
        stated: What the caller or the file states.
        chosen: The output that the caller chose.
        last: Whether the input has its channels on the last axis.

    Raises:
        InputError: The outputs contradict what is stated, or the axis of the boxes cannot be found out.
    """
    stated = stated or Statement()
    named: dict[str | None, Array] = dict(cast(Any, outputs)) if isinstance(outputs, Mapping) else {None: outputs}
    links: dict[str | None, str | None] = (
        dict(cast(Any, activation)) if isinstance(activation, Mapping) else dict.fromkeys(named, activation)
    )
    reader = _Reader(named, tuple(size), {name: links.get(name) for name in named}, labels, stated, last)
    kind = stated.kind
    first = one_output(outputs)
    is_vector = first.ndim <= 2
    if kind in (None, "detection", "segment") and (chosen is None or not is_vector):
        layout = reader.box_layout(only_selected=is_vector and kind is None)
        if layout is not None:
            return Task("detection", layout.classes, layout, size=tuple(size), cautions=tuple(reader.cautions))
        if kind == "detection":
            raise InputError(
                f"cannot read boxes from {_shapes(named)}; state the layout with boxes= (--boxes), or another task"
            )
    if kind in (None, "segmentation", "segment") and (kind is not None or not is_vector):
        spread = reader.map_layout(forced=kind is not None)
        if spread is not None:
            return Task("segmentation", spread.classes, map=spread, size=tuple(size), cautions=tuple(reader.cautions))
        if kind is not None:
            raise InputError(f"cannot read a map of classes from {_shapes(named)}; give another task= (--task)")
    if not is_vector or kind == "unknown":
        return Task("unknown", size=tuple(size))
    count = 2 if is_single(first) else first.shape[1]
    link = next(iter(reader.activations.values()))
    if kind is None:
        lengths = np.linalg.norm(first.astype(np.float64), axis=-1)
        is_unit = not is_single(first) and not is_distribution(first) and bool(np.allclose(lengths, 1, atol=1e-4))
        kind = (
            "embedding"
            if is_unit
            else "multi-label"
            if link == "sigmoid" and first.ndim == 2 and first.shape[1] > 1
            else "classification"
        )
    return Task(kind, count, size=tuple(size))  # type: ignore[arg-type]


class _Reader:
    """The outputs of a model, and what is known of them."""

    def __init__(
        self,
        named: dict[str | None, Array],
        size: tuple[int, ...],
        activations: Mapping[str | None, str | None],
        labels: Sequence[str] | None,
        stated: Statement,
        last: bool,
    ) -> None:
        self.named, self.size, self.activations = named, size, activations
        self.labels, self.stated, self.last = labels, stated, last
        self.cautions: list[str] = []

    def box_layout(self, only_selected: bool = False) -> BoxLayout | None:
        """Return the layout of boxes; None where there are none. `only_selected`: where the first output is a vector."""
        for name in (self.stated.boxes, self.stated.output):
            if name is not None and name not in self.named:
                raise InputError(f"unknown output {name!r}; {nearest(name, [str(n) for n in self.named])}")
        if len(self.size) != 2:
            return None
        joint = None if only_selected or self.stated.boxes else self._joint()
        pair = self._pair(only_selected)
        if joint is not None and pair is not None:  # the joint output may be made of the others
            (one, _), (two, _) = joint, pair
            joint, pair = (joint, None) if one.classes >= two.classes and one.count == two.count else (None, pair)
        layout, cautions = joint or pair or (None, [])
        self.cautions += cautions
        return layout

    # One output with boxes and scores.

    def _joint(self) -> tuple[BoxLayout, list[str]] | None:
        """Return the layout of an output that has boxes and their scores, and its cautions.

        Raises InputError where its axis is open.
        """
        for name, y in self.named.items():
            if y.ndim != 3 or len(y) == 0 or 4 in y.shape[1:] or self.stated.output not in (None, name):
                continue
            if self.stated.kind is None and y.shape[1:] == self.size:  # a map of the input
                continue
            if _says(name, "logit") and any(
                _has_boxes(b) and b.size // 4 // len(b) in y.shape[1:] for b in self.named.values()
            ):
                continue
            able = [r for r in (self._joint_along(name, y, axis) for axis in (1, 2)) if r is not None]
            if not able:
                continue
            if len(able) > 1:
                able.sort(key=lambda r: r[0], reverse=True)
                if able[0][0] == able[1][0] and self.stated.kind is None:
                    continue
                if able[0][0] == able[1][0]:
                    raise InputError(
                        f"cannot tell the boxes from the classes in an output of shape {y.shape}; give "
                        'boxes="boxes-first" for [batch, boxes, 4 + classes], "boxes-last" for [batch, 4 + classes, boxes] '
                        "(--boxes)"
                    )
            return able[0][1:]
        return None

    def _joint_along(
        self, name: str | None, y: Array, axis: int
    ) -> tuple[tuple[float, ...], BoxLayout, list[str]] | None:
        """Return the evidence for boxes along an axis, their layout, and its cautions; None where it is ruled out."""
        stated = self.stated
        columns = np.asarray(y[0] if axis == 1 else y[0].T, np.float64)
        count, width = columns.shape
        if stated.axis not in (None, axis) or width < 5 or not np.isfinite(columns).all():
            return None
        cautions: list[str] = []
        chosen_by = self._proto(width) is not None
        selected = stated.selected if stated.selected is not None else _is_selected(columns, chosen_by)
        form = self._form(columns[:, :4], cautions, "xyxy" if selected else "cxcywh", name)
        if form is None or (selected and (axis == 2 or width < 6)):
            return None
        corners, relative = form
        if selected:
            classes = len(self.labels) if self.labels else stated.classes or 1 + int(columns[:, 5].max(initial=0))
            layout = BoxLayout(
                count, classes, corners, relative, output=name, selected=True, extra=width - 6, axis=axis
            )
            return (9.0,), layout, cautions
        are_unit = np.asarray(((columns[:, 4:] >= 0) & (columns[:, 4:] <= 1)).all(axis=0))
        prefix = int(np.argmin(are_unit)) if not are_unit.all() else len(are_unit)
        known = stated.classes or (len(self.labels) if self.labels else None)
        tail = width - 4
        extra, objectness = self._proto(width) or 0, stated.objectness
        if known is not None:
            rest = tail - known
            if rest < 0:
                return None
            if objectness is None:
                objectness = rest - extra == 1 and bool(prefix >= tail - extra)
            extra = rest - objectness
            if extra < 0:
                return None
        else:
            if not extra and 0 < prefix < tail:
                extra = tail - prefix
            if objectness is None:
                objectness = self._has_objectness(columns, tail - extra, axis, cautions)
        classes = tail - extra - bool(objectness)
        if classes < 1:
            return None
        link: Link = (
            stated.link or _link(self.activations.get(name)) or ("identity" if prefix >= classes else "sigmoid")
        )
        is_open = link == "sigmoid" and stated.link is None and self.activations.get(name) is None and known is None
        if is_open and self.stated.kind != "detection":
            return None  # nothing but the coordinates distinguishes boxes with logits from other vectors
        background = stated.background
        if background is None and stated.has_background is None and link == "identity" and classes > 1:
            scores = columns[:, 4 + bool(objectness) : 4 + bool(objectness) + classes]
            if is_distribution(scores):
                background = self._background(scores, name, cautions)
        layout = BoxLayout(
            count,
            classes,
            corners,
            relative,
            bool(objectness),
            background,
            link,
            axis,
            name,
            extra=extra,
        )
        evidence = (
            float(known is not None and tail - known in (0, 1)),
            float(prefix >= tail - extra),
            float(tail in (COCO, COCO + 1)),
            float(count > width),
        )
        return evidence, layout, cautions

    def _proto(self, width: int) -> int | None:
        """Return the number of mask coefficients: the channels of an output that holds prototypes of masks."""
        counts = [
            y.shape[1] for y in self.named.values() if y.ndim == 4 and y.shape[1] < width - 4 and min(y.shape[2:]) > 3
        ]
        return counts[0] if counts else None

    def _has_objectness(self, columns: Array, tail: int, axis: int, cautions: list[str]) -> bool:
        """Return whether column 4 is an objectness, where the number of classes is not known."""
        if tail < 2 or tail == COCO:
            return False
        if tail == COCO + 1:
            return True
        if axis == 2:
            return False
        if (columns[:, 4] == 1).all():
            return True
        cells = sum(math.ceil(self.size[0] / s) * math.ceil(self.size[1] / s) for s in STRIDES)
        if len(columns) == 3 * cells:
            return True
        if len(columns) > QUERIES or len(columns) == cells:
            cautions.append(
                f"column 4 of the {columns.shape[1]} numbers for a box is taken for the score of class 0; where it is an "
                'objectness, give boxes="objectness" (--boxes objectness), else boxes="no-objectness"'
            )
        return False

    # Separate outputs.

    def _pair(self, only_selected: bool) -> tuple[BoxLayout, list[str]] | None:
        """Return the layout of boxes and scores in separate outputs, and its cautions."""
        ranked: list[tuple[tuple[Any, ...], str | None, str | None]] = []
        for boxes, b in self.named.items():
            if boxes is None or self.stated.boxes not in (None, boxes) or not _has_boxes(b):
                continue
            count = b.size // len(b) // 4 if len(b) else 0
            for scores, s in self.named.items():
                if scores == boxes or self.stated.output not in (None, scores) or scores is None:
                    continue
                is_sorted = s.shape == (len(s), count) and _are_sorted_scores(s)
                is_flat = s.shape == (len(s), count) and (is_sorted or _says(scores, "score", "conf", "prob"))
                if not is_flat and not (s.ndim == 3 and count in s.shape[1:] and not only_selected):
                    continue
                if is_flat and not (is_sorted or _says(boxes, "box")) and self.stated.boxes is None:
                    continue
                ranked.append(((_names(boxes, scores), s.ndim == 2), boxes, scores))
        if not ranked:
            return None
        ranked.sort(key=lambda entry: entry[0])
        best = [entry for entry in ranked if entry[0] == ranked[0][0]]
        able = [(b, s, form) for _, b, s in best if (form := self._separate(b, s)) is not None]
        if len(able) > 1:
            listed = " or ".join(f'boxes="boxes={b},scores={s}"' for b, s, _ in able)
            raise InputError(f"several outputs have the shapes of boxes and scores; give {listed} (--boxes)")
        return able[0][2] if able else None

    def _separate(self, boxes: str | None, scores: str | None) -> tuple[BoxLayout, list[str]] | None:
        """Return the layout of boxes and scores in two outputs, and its cautions; None where the values are not boxes."""
        cautions: list[str] = []
        stated, b, s = self.stated, self.named[boxes], self.named[scores]
        box_link = _link(self.activations.get(boxes)) or "identity"
        rows = linked(np.asarray(b[0].reshape(-1, 4) if b.shape[-1] == 4 else b[0].T, np.float64), box_link)
        count = len(rows)
        is_query = _says(boxes, "pred_boxes", "pred_bbox")
        is_yx = _says(boxes, "detection_boxes") and stated.corners is None
        form = self._form(
            rows, cautions, "cxcywh" if is_query else "yxyx" if is_yx else "xyxy", boxes, is_query or is_yx
        )
        if form is None:
            return None
        corners, relative = form
        layout = BoxLayout(count, 1, corners, relative, output=scores, boxes=boxes, box_link=box_link)
        if s.ndim == 2:
            numbers = next(
                (n for n, y in self.named.items() if y.shape == s.shape and _says(n, "class", "label")), None
            )
            values = self.named.get(numbers) if numbers is not None else None
            classes = len(self.labels) if self.labels else 0 if values is None else 1 + int(values.max(initial=0))
            return replace(layout, classes=classes, selected=True, numbers=numbers), cautions
        axis = 1 if s.shape[1] == count else 2
        z = s[0] if axis == 1 else s[0].T
        classes, background = z.shape[1], stated.background
        link = stated.link or _link(self.activations.get(scores))
        are_unit = bool(((z >= 0) & (z <= 1)).all())
        has_background = stated.has_background
        if link is None and are_unit:
            link = "identity"
            has_background = is_distribution(z) if has_background is None else has_background
        elif link is None:
            link, has_background = self._of_logits(z, scores, is_query, has_background, cautions)
        elif has_background is None:
            has_background = link == "softmax" and classes > 1
        if has_background and background is None:
            p = z if link == "identity" else _softmax(z)
            background = self._background(p, scores, cautions, is_query)
        if background is not None:
            background %= classes
        return replace(layout, classes=classes, background=background, link=link, axis=axis), cautions

    def _of_logits(
        self, z: Array, name: str | None, is_query: bool, stated: bool | None, cautions: list[str]
    ) -> tuple[Link, bool]:
        """Return the function of scores that are logits, and whether a class is the background."""
        classes = z.shape[1]
        if stated is not None:
            return ("softmax" if stated else "sigmoid"), stated
        if classes == 1:
            return "sigmoid", False
        if self.labels:
            if len(self.labels) == classes - 1 or self._labelled_background() is not None:
                return "softmax", True
            if len(self.labels) == classes:
                return "sigmoid", False
        p = _softmax(z).mean(axis=0)
        if max(p[0], p[-1]) > 0.5:  # most boxes of a trained model are background
            return "softmax", True
        if float(_sigmoid(z).mean()) < 0.1:  # else each class is improbable
            return "sigmoid", False
        if is_query and classes in KNOWN:
            return ("softmax", True) if KNOWN[classes] else ("sigmoid", False)
        cautions.append(
            f"the scores {name!r} of {classes} classes are logits: they are taken for those of a "
            + (
                'softmax whose last class means no object; where each class has a sigmoid, give boxes="sigmoid"'
                if is_query
                else 'sigmoid for each class; where class 0 is the background, give boxes="softmax,background=0"'
            )
            + " (--boxes)"
        )
        return ("softmax", True) if is_query else ("sigmoid", False)

    def _labelled_background(self) -> int | None:
        return next((i for i, label in enumerate(self.labels or ()) if label.strip().lower() in BACKGROUND), None)

    def _background(self, p: Array, name: str | None, cautions: list[str], is_query: bool = False) -> int:
        """Return the class of the background, from the probabilities [B, K] of a softmax."""
        classes = p.shape[1]
        if self.labels and len(self.labels) == classes and (index := self._labelled_background()) is not None:
            return index
        mean = p.mean(axis=0)
        ends = {0: float(mean[0]), classes - 1: float(mean[-1])}
        likely = [index for index, share in ends.items() if share > 0.5]
        expected = classes - 1 if is_query else 0
        if likely and likely[0] != expected and not (is_query or _says(name, "logits")):
            cautions.append(
                f'class {likely[0]} of {name!r} is taken for the background; give another with boxes="background=N" '
                "(--boxes)"
            )
        return likely[0] if likely else expected

    def _form(
        self, boxes: Array, cautions: list[str], usual: Corners, name: str | None, is_named: bool = False
    ) -> tuple[Corners, bool] | None:
        """Return the form of boxes [B, 4], and whether they are relative; None where they cannot be boxes of the input.

        Args:
            boxes: [B, 4].
            cautions: A caution is added where the form is open.
            usual: The form where the values leave it open.
            name: The output.
            is_named: The names say the form.
        """
        stated = self.stated
        boxes = boxes[np.any(boxes != 0, axis=1)]
        if not len(boxes):
            return stated.corners or usual, bool(stated.relative)
        relative = stated.relative
        if relative is None:
            relative = float(np.percentile(np.abs(boxes), 95)) <= 2
        height, width = self.size
        b = boxes / (1 if relative else np.array([width, height, width, height]))
        first, second = b[:, :2], b[:, 2:]

        def near(points: Array) -> Array:
            return np.asarray(((points >= -0.25) & (points <= 1.25)).all(axis=1))

        def share(sizes: Array, centres: Array) -> float:
            return float(np.mean(((sizes >= 0) & (sizes <= 4)).all(axis=1) & near(centres)))

        ordered, sized = share(second - first, (first + second) / 2), share(second, first)
        if stated.corners is not None:
            return stated.corners, relative
        if usual == "yxyx":
            return ("yxyx", relative) if ordered >= SHARE else None
        if max(ordered, sized) < SHARE:
            return None
        if ordered < 0.98:
            return ("cxcywh" if sized >= SHARE else "xyxy"), relative
        within = (first - second / 2 > -0.1).all(axis=1) & (first + second / 2 < 1.1).all(axis=1)
        if sized < SHARE or float(within.mean()) < 0.9:
            return "xyxy", relative
        if not is_named:
            other = "xywh" if usual == "xyxy" else "xyxy"
            text = "xywh" if usual == "cxcywh" else usual
            output = "" if name is None else f" of {name!r}"
            cautions.append(
                f"the boxes{output} are read as {text}, and could as well be {other}; give boxes={text!r} or "
                f"boxes={other!r} (--boxes {other})"
            )
        return usual, relative

    # Segmentation.

    def map_layout(self, forced: bool) -> MapLayout | None:
        """Return the layout of a map of classes; None where there is none."""
        rank = len(self.size)
        able = {name: y for name, y in self.named.items() if y.ndim == rank + 2 and min(y.shape) > 0}
        if not able or rank == 0:
            return None
        name, y = next(iter(able.items()))
        main = {n: o for n, o in able.items() if not _says(n, *PARTIAL)}
        if not forced and (len({o.shape[1:] for o in main.values()}) > 1 or _says(name, "quer")):
            return None  # raw heads of a detector, features of several scales, masks of queries
        shape = y.shape[1:]
        fits = {False: self._ratio(shape[1:], shape[0], forced), True: self._ratio(shape[:-1], shape[-1], forced)}
        able_axes = [last for last in fits if fits[last]]
        if not able_axes:
            return None
        last = able_axes[0]
        if len(able_axes) > 1:
            counts = [last for last in fits if self.labels and shape[-1 if last else 0] == len(self.labels)]
            last = counts[0] if len(counts) == 1 else self.last
        classes = shape[-1] if last else shape[0]
        z = np.moveaxis(y, -1, 1) if last else y
        link = _link(self.activations.get(name))
        if link is None:
            are_unit = bool(((z >= 0) & (z <= 1)).all())
            link = "identity" if are_unit else "sigmoid" if classes == 1 else "softmax"
        background = self._labelled_background()
        if background is None and not self.labels and classes > 1:
            background = 0
        space = shape[:-1] if last else shape[1:]
        return MapLayout(classes, tuple(space), last, name, link, background)

    def _ratio(self, space: Sequence[int], count: int, forced: bool) -> bool:
        """Return whether a grid of `count` channels has the ratio of the input, and is not much coarser."""
        ratios = [n / max(m, 1) for n, m in zip(self.size, space, strict=True)]
        limit = 64 if forced else 16 if not self.labels or len(self.labels) != count else 33
        return all(0.2 <= r <= limit for r in ratios) and max(ratios) <= 1.15 * min(ratios) and min(space) > 1


def _is_selected(columns: Array, has_masks: bool) -> bool:
    """Return whether rows [B, 6 + …] are boxes that the model selected: corners, score, and the number of the class."""
    if columns.shape[1] < 6 or len(columns) > QUERIES:
        return False
    score, number = columns[:, 4], columns[:, 5]
    are_numbers = bool((number == np.rint(number)).all() and (number >= 0).all())
    is_score = bool(((score >= 0) & (score <= 1)).all())
    is_sorted = bool((np.diff(score) <= 0).all())
    return are_numbers and is_score and (is_sorted or (columns.shape[1] == 6 and number.max(initial=0) > 1))


def _are_sorted_scores(s: Array) -> bool:
    """Return whether an output [N, B] has the scores of boxes that the model selected: the best first."""
    return s.shape[1] > 1 and bool(((s >= 0) & (s <= 1)).all() and (np.diff(s, axis=1) <= 0).all())


def _has_boxes(b: Array) -> bool:
    """Return whether an output has the shape of boxes: [N, B, 4], [N, 4, B] or [N, B, 1, 4]."""
    return (b.ndim == 3 and 4 in b.shape[1:]) or (b.ndim == 4 and b.shape[2:] == (1, 4))


def _says(name: str | None, *parts: str) -> bool:
    return name is not None and any(part in name.lower() for part in parts)


PARTIAL = ("enc", "aux", "inter", "init", "raw", "dn_", "one2many")
"""Parts of the names of outputs that are used in training."""


def _names(boxes: str, scores: str) -> tuple[Any, ...]:
    """Return a rank for names of boxes and scores; the likeliest pair has the smallest."""
    auxiliary = sum(
        _says(name.rpartition(".")[2] or name, *PARTIAL) or _says(name, "one2many") for name in (boxes, scores)
    )
    return (
        auxiliary,
        not _says(boxes, "box", "loc", "coord"),
        _says(scores, "box"),
        not _says(scores, "score", "logit", "conf", "cls", "class", "prob"),
    )


def _link(activation: str | None) -> Link | None:
    return activation if activation in ("softmax", "sigmoid") else None  # type: ignore[return-value]


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _sigmoid(z: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


def _shapes(named: Mapping[str | None, Array]) -> str:
    """Return the shapes of outputs for a message."""
    return ", ".join(f"{'' if name is None else f'{name!r} '}{y.shape}" for name, y in named.items())
