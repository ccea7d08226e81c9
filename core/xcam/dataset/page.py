"""The report on a batch: images that look wrong, in the order in which they should be inspected."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcam.dataset import findings, storage
from xcam.dataset.energy import Floats
from xcam.dataset.findings import KINDS, Average, Finding, Findings, Kind
from xcam.dataset.inputs import listing
from xcam.dataset.output import RUN, Output
from xcam.dataset.worker import decoded
from xcam.errors import XcamError
from xcam.images.framing import Frame
from xcam.methods import maps
from xcam.report import formatting, thumbnails
from xcam.report.rendering import render
from xcam.report.thumbnails import Embedded

SIDE = 192
"""The longer side of a thumbnail: four kinds of twelve must weigh less than 2 MB."""
HEAT = 96
"""The sides of a heatmap, which is interpolated from a few cells."""
NAME = 44
"""The number of characters of a name that are shown, its beginning and its end."""
SHOWN = 24
"""The number of classes that are shown with their average map."""
SHARD = re.compile(r"\.tar/", re.IGNORECASE)

TITLES: dict[Kind, tuple[str, str, str]] = {
    "wrong": (
        "Wrong, with a confident map",
        "wrong with a confident map",
        "The predicted class differs from the given one, and the map is concentrated. Check which object the map "
        "highlights: another object in the image, a watermark, a background that is typical of a class (a shortcut: "
        "Lapuschkin et al. 2019, “Unmasking Clever Hans predictors”), or the right object under a wrong label.",
    ),
    "edge": (
        "On the border or in a corner",
        "on the border or in a corner",
        "Watermarks, dates, logos and frames appear in these regions, and the zero padding of convolutions affects "
        "them (Alsallakh et al. 2021, “Mind the Pad”). Such a map is correct if the object is located there.",
    ),
    "same": (
        "The same map for different classes",
        "with the same map for two classes",
        "The best class and the second best have the same map: it shows where an object is, but not the evidence for "
        "this class. Do not read it as a reason for the class. Try another layer, the method hirescam, or finercam, which "
        "highlights the differences between a class and its neighbours (Zhang et al. 2025).",
    ),
    "zero": (
        "All-zero maps",
        "all zero",
        "By this method, nothing at this layer supports the class. This happens if all classes have low scores. If it "
        "happens often, check the preprocessing first, then try another layer or method.",
    ),
}


def page(output: Output) -> bytes:
    """Return the report on the table of a batch, complete in itself. Memory does not grow with the table.

    Args:
        output: The output of a batch. The images that are shown are read again; a missing one is replaced by a grey
            rectangle.

    Raises:
        InputError: The table cannot be read.
        BackendError: Jinja2 is not installed.
    """
    request = _request(output)
    collected = findings.collect(output.parts(), by_target=bool(request.get("targets")))
    return render("batch.html", content(collected, request))


def content(collected: Findings, request: dict[str, Any]) -> dict[str, Any]:
    """Return the values for batch.html.

    Args:
        collected: The findings in the table.
        request: The record of the run; empty where it is unknown.
    """
    shown = list(dict.fromkeys(f.path for kind in KINDS for f in collected.worst[kind].findings))
    thumbs = dict(zip(shown, _thumbnails(shown), strict=True))
    names = dict(zip(shown, _names(shown), strict=True))
    classes = collected.classes()
    averages = [collected.everything, *classes[:SHOWN]] if collected.everything.count else []
    return {
        "title": f"What looks wrong in {formatting.count(collected.images, 'image')}?",
        "run": [str(request[key]) for key in ("model", "method", "layer") if request.get(key)],
        "sentences": _sentences(collected),
        "tally": [
            (kind, collected.worst[kind].count, TITLES[kind][1]) for kind in KINDS if _is_covered(collected, kind)
        ],
        "notes": _notes(collected),
        "histogram": _histogram(collected),
        "thumbnails": [(f"image-{k}", thumbs[path].shown, not thumbs[path].error) for k, path in enumerate(shown)],
        "sections": [
            {
                "kind": kind,
                "title": TITLES[kind][0],
                "text": TITLES[kind][2],
                "count": collected.worst[kind].count,
                "cards": [
                    _card(f, kind, collected, names[f.path], f"image-{shown.index(f.path)}", thumbs[f.path])
                    for f in collected.worst[kind].findings
                ],
            }
            for kind in KINDS
            if collected.worst[kind].findings
        ],
        "averages": [_average(a) for a in averages],
        "classes": len(classes),
        "labelled": bool(collected.labelled),
        "by_target": collected.by_target,
        "others": collected.others,
        "failed": [(path, reason.removeprefix(path).lstrip(": ")) for path, reason in collected.failures],
        "failures": collected.failed,
        "heat": thumbnails.stops(thumbnails.HEAT),
    }


def _request(output: Output) -> dict[str, Any]:
    """Return the record of the run; empty where it cannot be read any more."""
    with contextlib.suppress(XcamError, ValueError):
        request = json.loads(storage.read(storage.join(output.path, RUN)))
        return request if isinstance(request, dict) else {}
    return {}


def _is_covered(collected: Findings, kind: Kind) -> bool:
    """Return whether the table has the columns for this kind of finding."""
    return {
        "wrong": collected.maps and bool(collected.labelled),
        "edge": collected.maps,
        "same": collected.rivals,
        "zero": True,
    }[kind]


def _sentences(collected: Findings) -> list[str]:
    """Return the summary, the most important sentence first."""
    if not collected.images:
        return ["The table is empty."]
    if collected.failed == collected.images:
        return [f"None could be explained: {formatting.count(collected.failed, 'image')} failed."]
    result = []
    if collected.labelled:
        result.append(
            f"{formatting.percent(collected.correct / collected.labelled)} of the "
            f"{formatting.count(collected.labelled, 'image')} with a given class are classified correctly; "
            f"{collected.labelled - collected.correct} wrongly."
        )
    zero, edge = collected.worst["zero"].count, collected.worst["edge"].count
    if collected.drawn:
        many = f"{edge} ({formatting.percent(edge / collected.drawn)})" if edge else "None"
        result.append(
            f"{many} of {formatting.count(collected.drawn, 'map')} {'are' if edge > 1 else 'is'} mostly on the border or in "
            f"a corner. On average, {formatting.percent(collected.border / collected.drawn)} of a map is on the border; of a "
            f"uniform map it would be {formatting.percent(collected.border_expected / collected.drawn)}."
        )
    if zero:
        result.append(
            f"{zero} ({formatting.percent(zero / collected.explained)}) of {formatting.count(collected.explained, 'map')} "
            f"{'is' if zero == 1 else 'are'} all zero."
        )
    if collected.failed:
        result.append(f"{formatting.count(collected.failed, 'image')} failed.")
    return result


def _notes(collected: Findings) -> list[str]:
    """Return the checks that were left out, and why."""
    result = []
    if not collected.maps:
        result.append(
            "The table has no maps (--no-maps): confident maps, maps on the border and average maps are left out."
        )
    if not collected.labelled:
        result.append(
            "No class is given: wrong predictions are left out. Give it in a table's column class, or a shard's .cls."
        )
    if not collected.rivals:
        result.append(
            "Maps of the second best class were not computed: the comparison of the maps of two classes is left out."
        )
    return result


def _histogram(collected: Findings) -> list[dict[str, Any]]:
    """Return the number of images by probability, the highest first; empty without probabilities."""
    counts = collected.histogram
    top = int(counts[:, 0].max())
    return [
        {
            "range": f"{100 * k // findings.BINS}–{100 * (k + 1) // findings.BINS}%",
            "count": int(counts[k, 0]),
            "wrong": int(counts[k, 1]),
            "width": f"{100 * counts[k, 0] / top:.4g}",
            "bad": f"{100 * counts[k, 1] / top:.4g}",
        }
        for k in reversed(range(findings.BINS))
        if top
    ]


@dataclass(frozen=True)
class Thumbnail:
    """An image that was read again, or an empty rectangle."""

    shown: Embedded
    error: str = ""
    """The reason if the image could not be read."""
    size: tuple[int, int] | None = None
    """The height and width of the original."""


def _thumbnails(paths: Sequence[str]) -> list[Thumbnail]:
    locations = _locations(paths)
    return [_thumbnail(path, locations.get(path, (path, None, None))) for path in paths]


def _thumbnail(path: str, location: tuple[str, int | None, int | None]) -> Thumbnail:
    try:
        image, size = decoded(storage.read(*location), path, SIDE)
        return Thumbnail(thumbnails.embed(image, SIDE), size=size)
    except (XcamError, MemoryError) as error:
        reason = str(error).removeprefix(path).lstrip(": ") or type(error).__name__
        return Thumbnail(Embedded("", SIDE, SIDE), reason)


def _locations(paths: Iterable[str]) -> dict[str, tuple[str, int | None, int | None]]:
    """Return file, offset and length of the images in shards. Each shard is read once."""
    members: dict[str, set[str]] = {}
    for path in paths:
        shards = (path[: match.start() + len(".tar")] for match in SHARD.finditer(path))
        with contextlib.suppress(XcamError):
            if shard := next((s for s in shards if storage.exists(s) and not storage.is_folder(s)), None):
                members.setdefault(shard, set()).add(path)
    result = {}
    for shard, wanted in members.items():
        with contextlib.suppress(XcamError):
            for batch in listing([shard]).to_batches(max_chunksize=10_000):
                for row in batch.select(["path", "file", "offset", "length"]).to_pylist():
                    if row["path"] in wanted:
                        result[row["path"]] = (row["file"], row["offset"], row["length"])
    return result


def _names(paths: Sequence[str]) -> list[str]:
    """Return file names; whole paths where two files have the same name."""
    counts = Counter(map(storage.base_name, paths))
    return [name if counts[name := storage.base_name(path)] == 1 and name else path for path in paths]


def _card(f: Finding, kind: Kind, collected: Findings, name: str, image_id: str, thumb: Thumbnail) -> dict[str, Any]:
    """Return the values of one finding."""
    is_probability = f.probability is not None and 0 <= f.probability <= 1.0001
    probability = ""
    if f.probability is not None:
        probability = (
            formatting.percent(min(f.probability, 1.0))
            if is_probability
            else f"score {formatting.number(f.probability)}"
        )
    reason = _reason(f, kind)
    return {
        "name": formatting.shorten(name, NAME),
        "path": f.path,
        "image": image_id,
        "shown": thumb.shown,
        "error": thumb.error,
        "uri": "" if f.cam is None or not f.cam.any() else thumbnails.heat(_on_image(f, thumb), side=HEAT),
        "alt": f"{name}{f', map for {f.target}' if f.cam is not None else ''}: {reason}",
        "prediction": f.prediction or "no class",
        "probability": probability,
        "label": None if f.label is None else collected.class_name(f.label),
        "target": f.target if f.target and f.target != f.prediction else "",
        "reason": reason,
    }


def _on_image(f: Finding, thumb: Thumbnail) -> Floats:
    """Return the map at its location in the image, as a square that the page stretches over the image."""
    assert f.cam is not None
    if f.box is None or thumb.size is None:
        return maps.resize(f.cam, (HEAT, HEAT))
    (height, width), (x0, y0, x1, y1) = thumb.size, f.box
    rows, columns = f.cam.shape
    scale = rows / (y1 - y0), columns / (x1 - x0)
    frame = Frame((height, width), (rows, columns), scale, (-y0 * scale[0], -x0 * scale[1]))
    frame = frame.resized((HEAT, HEAT))
    return np.where(frame.mask, frame.map_to_image(f.cam), np.float32(np.nan))  # transparent where it was not seen


def _reason(f: Finding, kind: Kind) -> str:
    """Return one sentence on why this row is listed."""
    if kind == "wrong":
        return f"Wrong, and {formatting.percent(f.share)} of the map is in a fifth of the image."
    if kind == "edge":
        region = "on the border" if f.region == "border" else f"in the {f.region} corner"
        return f"{formatting.percent(f.share)} of the map is {region}, which is {formatting.percent(f.expected)} of the image."
    if kind == "same":
        return f"The maps for {f.target} and {f.rival} have a correlation of {formatting.correlation(f.correlation)}."
    return f"Nothing in the image supports {f.target} at this layer."


def _average(a: Average) -> dict[str, Any]:
    cam = maps.normalize(a.cam[None], "max")[0]
    name = a.name or "All images"
    summary = "zero everywhere"
    if cam.any():
        y, x = np.unravel_index(int(np.argmax(cam)), cam.shape)
        summary = f"maximum {(x + 0.5) / cam.shape[1]:.0%} from the left, {(y + 0.5) / cam.shape[0]:.0%} from the top"
    return {
        "name": name,
        "all": not a.name,
        "uri": thumbnails.heat(np.clip(maps.resize(cam, (HEAT, HEAT)), 0, 1), side=HEAT),
        "alt": f"Average map of {name}: {summary}",
        "count": formatting.count(a.count, "map"),
        "correct": formatting.percent(a.correct / a.labelled) if a.labelled else "",
    }
