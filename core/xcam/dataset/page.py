"""The report on a batch: what looks wrong in a set of pictures, sorted in the order in which a person would act."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcam.comparison import sentences
from xcam.comparison.page import TINY
from xcam.dataset import findings, storage
from xcam.dataset.findings import KINDS, Average, Finding, Findings, Kind
from xcam.dataset.inputs import listing
from xcam.dataset.output import RUN, Output
from xcam.dataset.worker import decoded
from xcam.errors import XcamError
from xcam.images.reading import Image
from xcam.methods import maps
from xcam.report import thumbnails
from xcam.report.rendering import _environment, _rendered
from xcam.report.thumbnails import Embedded

SIDE = 192
"""The longer side of a photo: four kinds of twelve must weigh less than 2 MB."""
HEAT = 96
"""The sides of a heatmap: it is a few cells, interpolated."""
NAME = 44
"""So many letters of a name are shown, its beginning and its end."""
SHOWN = 24
"""So many classes are shown with their average map."""
SHARD = re.compile(r"\.tar/", re.IGNORECASE)

TITLES: dict[Kind, tuple[str, str, str]] = {
    "wrong": (
        "Wrong, with a confident map",
        "wrong with a confident map",
        "The network names another class than the one that is told, and its map is not vague. See what it "
        "points at: another object in the picture, a watermark, a background that goes with a class (a shortcut: "
        "Lapuschkin et al. 2019, “Unmasking Clever Hans predictors”), or the right object under a wrong label.",
    ),
    "edge": (
        "On the border or in a corner",
        "on the border or in a corner",
        "Watermarks, dates, logos and frames lie there, and the zeros with which convolutions pad a picture are seen "
        "there (Alsallakh et al. 2021, “Mind the Pad”). It is as it should be where the object itself lies there.",
    ),
    "same": (
        "The same map for different classes",
        "with the same map for two classes",
        "The best class and the second best have the same map: it shows where something is, not what speaks for this "
        "class. Do not read it as a reason for the class. Try another layer, the method hirescam, or finercam, which "
        "looks at what tells a class from its neighbours (Zhang et al. 2025).",
    ),
    "zero": (
        "All-zero maps",
        "all zero",
        "Nothing at this layer speaks for the class by this method. It happens where the class was chosen for lack of "
        "a better one. Where it happens often, check the preprocessing first, then try another layer or method.",
    ),
}


def page(output: Output) -> bytes:
    """The page, complete in itself, from the table of a batch. Memory does not grow with the table.

    The pictures that are shown are read again; one that is gone is replaced by a grey ground. Raises BackendError where
    Jinja2 is not installed, InputError where the table cannot be read.
    """
    environment = _environment()
    run = _run(output)
    found = findings.collect(output.parts(), by_target=bool(run.get("targets")))
    return _rendered(environment, "batch.html", content(found, run))


def content(found: Findings, run: dict[str, Any]) -> dict[str, Any]:
    """The content of batch.html."""
    shown = list(dict.fromkeys(f.path for kind in KINDS for f in found.worst[kind].found))
    photos = dict(zip(shown, _photos(shown), strict=True))
    names = dict(zip(shown, _names(shown), strict=True))
    classes = found.classes()
    return {
        "title": f"What looks wrong in {sentences.count(found.pictures, 'picture')}",
        "run": [str(run[key]) for key in ("model", "method", "layer") if run.get(key)],
        "sentences": _sentences(found),
        "tally": [(kind, found.worst[kind].count, TITLES[kind][1]) for kind in KINDS if _looked(found, kind)],
        "notes": _notes(found),
        "histogram": _histogram(found),
        "photos": [(f"photo-{k}", photos[path].shown, photos[path].gone == "") for k, path in enumerate(shown)],
        "sections": [
            {
                "kind": kind,
                "title": TITLES[kind][0],
                "text": TITLES[kind][2],
                "count": found.worst[kind].count,
                "cards": [
                    _card(f, kind, found, names[f.path], f"photo-{shown.index(f.path)}", photos[f.path])
                    for f in found.worst[kind].found
                ],
            }
            for kind in KINDS
            if found.worst[kind].found
        ],
        "averages": [_average(a) for a in ([found.everything, *classes[:SHOWN]] if found.everything.count else [])],
        "classes": len(classes),
        "known": bool(found.told),
        "by_target": found.by_target,
        "others": found.others,
        "failed": [(path, why.removeprefix(path).lstrip(": ")) for path, why in found.failures],
        "failures": found.failed,
        "tiny": TINY,
        "heat": thumbnails.stops(thumbnails.HEAT),
    }


def _run(output: Output) -> dict[str, Any]:
    """What was asked for; empty where it is not known any more."""
    with contextlib.suppress(XcamError, ValueError):
        told = json.loads(storage.read(storage.joined(output.place, RUN)))
        return told if isinstance(told, dict) else {}
    return {}


def _looked(found: Findings, kind: Kind) -> bool:
    """The table has what it takes to find this."""
    return {"wrong": found.maps and bool(found.told), "edge": found.maps, "same": found.rivals, "zero": True}[kind]


def _sentences(found: Findings) -> list[str]:
    """The answer in words, the most important first."""
    if not found.pictures:
        return ["The table is empty."]
    out = []
    if found.failed == found.pictures:
        return [f"Not one could be explained: {sentences.count(found.failed, 'picture')} failed."]
    if found.told:
        out.append(
            f"{sentences.share(found.right / found.told)} of the {sentences.count(found.told, 'picture')} whose class is told "
            f"are named right; {found.told - found.right} wrong."
        )
    zero, edge = found.worst["zero"].count, found.worst["edge"].count
    if found.drawn:
        many = f"{edge} ({sentences.share(edge / found.drawn)})" if edge else "None"
        out.append(
            f"{many} of {sentences.count(found.drawn, 'map')} {'lie' if edge > 1 else 'lies'} mostly on the border or in a "
            f"corner. On average {sentences.share(found.border / found.drawn)} of a map is on the border; of a map that is "
            f"the same everywhere it would be {sentences.share(found.border_expected / found.drawn)}."
        )
    if zero:
        are = "is" if zero == 1 else "are"
        out.append(
            f"{zero} ({sentences.share(zero / found.explained)}) of {sentences.count(found.explained, 'map')} {are} all zero."
        )
    if found.failed:
        out.append(f"{sentences.count(found.failed, 'picture')} failed.")
    return out


def _notes(found: Findings) -> list[str]:
    """What could not be looked for, and why."""
    out = []
    if not found.maps:
        out.append(
            "The table has no maps (--no-maps): confident maps, maps on the border and average maps are left out."
        )
    if not found.told:
        out.append(
            "No class is told: wrong predictions are left out. A table's column class, or a shard's .cls, tells it."
        )
    if not found.rivals:
        out.append("Maps of the second best class were not computed: whether classes have the same map is left out.")
    return out


def _histogram(found: Findings) -> list[dict[str, Any]]:
    """Pictures by probability, the surest first; empty where there is no probability."""
    counts = found.histogram
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
class Photo:
    """A picture that was read again, or a ground in its place."""

    shown: Embedded
    gone: str = ""
    """Why it is not there."""


def _photos(paths: Sequence[str]) -> list[Photo]:
    places = _places(paths)
    return [_photo(path, places.get(path, (path, None, None))) for path in paths]


def _photo(path: str, place: tuple[str, int | None, int | None]) -> Photo:
    try:
        image: Image = decoded(storage.read(*place), path, SIDE)[0]
        return Photo(thumbnails.photo(image, SIDE))
    except (XcamError, MemoryError) as error:
        return Photo(Embedded("", SIDE, SIDE), str(error).removeprefix(path).lstrip(": ") or type(error).__name__)


def _places(paths: Iterable[str]) -> dict[str, tuple[str, int | None, int | None]]:
    """Where the pictures are that lie in shards: file, offset, length. Each shard is gone through once."""
    members: dict[str, set[str]] = {}
    for path in paths:
        shards = (path[: found.start() + len(".tar")] for found in SHARD.finditer(path))
        with contextlib.suppress(XcamError):
            if shard := next((s for s in shards if storage.exists(s) and not storage.is_folder(s)), None):
                members.setdefault(shard, set()).add(path)
    out = {}
    for shard, wanted in members.items():
        with contextlib.suppress(XcamError):
            for batch in listing([shard]).to_batches(max_chunksize=10_000):
                for row in batch.select(["path", "file", "offset", "length"]).to_pylist():
                    if row["path"] in wanted:
                        out[row["path"]] = (row["file"], row["offset"], row["length"])
    return out


def _names(paths: Sequence[str]) -> list[str]:
    """File names; whole paths where two have the same name."""
    often = Counter(path.rpartition("/")[2] for path in paths)
    return [name if often[name := path.rpartition("/")[2]] == 1 and name else path for path in paths]


def _card(f: Finding, kind: Kind, found: Findings, name: str, photo: str, shown: Photo) -> dict[str, Any]:
    """One finding."""
    told = None if f.told is None else found.named(f.told)
    likely = f.probability is not None and 0 <= f.probability <= 1.0001
    prediction = f.prediction or "no class"
    why = _why(f, kind)
    return {
        "name": sentences.shorter(name, NAME),
        "path": f.path,
        "photo": photo,
        "shown": shown.shown,
        "gone": shown.gone,
        "uri": ""
        if f.cam is None or not f.cam.any()
        else thumbnails.heat(maps.resize(f.cam, (HEAT, HEAT)), side=HEAT),
        "alt": f"{name}{f', map for {f.target}' if f.cam is not None else ''}: {why}",
        "prediction": prediction,
        "probability": ""
        if f.probability is None
        else sentences.share(min(f.probability, 1.0))
        if likely
        else f"score {sentences.number(f.probability)}",
        "told": told,
        "target": f.target if f.target and f.target != f.prediction else "",
        "why": why,
    }


def _why(f: Finding, kind: Kind) -> str:
    """One sentence: why this row is here."""
    if kind == "wrong":
        return f"Wrong, and {sentences.share(f.share)} of the map is in a fifth of the picture."
    if kind == "edge":
        where = "on the border" if f.where == "border" else f"in the {f.where} corner"
        return f"{sentences.share(f.share)} of the map is {where}, which is {sentences.share(f.expected)} of the picture."
    if kind == "same":
        return f"The maps for {f.target} and {f.rival} correlate with {sentences.likeness(f.correlation)}."
    return f"Nothing in the picture speaks for {f.target} at this layer."


def _average(a: Average) -> dict[str, Any]:
    cam = maps.normalize(a.cam[None], "max")[0]
    name = a.name or "All pictures"
    inside = "zero everywhere"
    if cam.any():
        y, x = np.unravel_index(int(np.argmax(cam)), cam.shape)
        inside = (
            f"strongest {(x + 0.5) / cam.shape[1]:.0%} from the left, {(y + 0.5) / cam.shape[0]:.0%} from the top"
        )
    return {
        "name": name,
        "all": not a.name,
        "uri": thumbnails.heat(np.clip(maps.resize(cam, (HEAT, HEAT)), 0, 1), side=HEAT),
        "alt": f"Average map of {name}: {inside}",
        "count": sentences.count(a.count, "map"),
        "right": sentences.share(a.right / a.told) if a.told else "",
    }
