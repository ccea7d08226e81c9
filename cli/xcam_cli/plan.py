"""What the words of `xcam explain` ask for: methods, layers and classes, how they are drawn, and where they go."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What is to be made of each picture."""

    layers: tuple[str, ...]
    targets: tuple[str, ...]
    fuse: str | None
    methods: tuple[str, ...]
    how: dict[str, Any]
    """Options of `xcam.explain`."""
    drawing: dict[str, Any]
    as_json: bool
    together: bool
    """One picture holds all that is made of an image."""

    @property
    def wanted(self) -> list[str] | None:
        return list(self.targets) or None

    @property
    def places(self) -> list[Any]:
        """The layers that are explained one by one; or all, as one list, to be fused."""
        return [list(self.layers)] if self.fuse else list(self.layers) or [None]


def planned(
    layers: tuple[str, ...], targets: tuple[str, ...], fuse: str | None, options: dict[str, Any]
) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the options of `xcam.load`. Raises InputError."""
    from xcam.errors import InputError
    from xcam.images.overlay import check_drawing
    from xcam.methods.registry import get
    from xcam.targets import several

    if fuse and len(layers) < 2:
        raise InputError("--fuse joins the maps of several layers; give -l more than once")
    for what, words in (("layer", layers), ("class", targets)):
        for word in words:
            if words.count(word) > 1:
                raise InputError(f"{what} {word!r} is given twice; name each once")
    methods = tuple(dict.fromkeys(options.pop("methods"))) or ("gradcam",)
    if "all" not in methods:
        for name in methods:
            get(name)
    drawing = {name: options.pop(name) for name in ("colormap", "alpha", "blend", "style")}
    if options.pop("signed"):
        if drawing["style"] == "contour":
            raise InputError("--signed is short for --style signed, and --style contour is another; leave one out")
        drawing["style"] = "signed"
    if drawing["style"] == "signed" and (fuse or options["normalize"] != "max"):
        name = "--fuse" if fuse else "--normalize"
        raise InputError(f"{name} is for maps without a sign; leave it out, or draw another style")
    check_drawing(**drawing)
    how = {name: options.pop(name) for name in ("score", "normalize", "augment")}
    how["method_options"] = settings_of(options.pop("settings"), methods)
    side_by_side = len(methods) > 1 or "all" in methods or (len(layers) > 1 and not fuse)
    together = options.pop("grid") or side_by_side or any(several(word) for word in targets)
    return Plan(layers, targets, fuse, methods, how, drawing, options.pop("as_json"), together), options


def settings_of(words: tuple[str, ...], methods: tuple[str, ...]) -> dict[str, Any]:
    """`n=8` → {"n": 8}, of the type that the option's default has. Raises InputError."""
    from xcam.errors import InputError
    from xcam.methods.registry import get

    if words and (len(methods) > 1 or "all" in methods):
        raise InputError("options belong to one method; name one with --method")
    found: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise InputError(f"{word!r} is no option of a method; give NAME=VALUE, as in n=8")
        method = get(methods[0])
        method.checked({name: method.options.get(name)})
        if name in found:
            raise InputError(f"option {name!r} is given twice; give it once")
        kind = type(method.options[name])
        read = _truth if kind is bool else kind if kind in (int, float) else str
        with contextlib.suppress(ValueError):
            found[name] = read(text)
        method.checked({name: found.get(name, text)})
    return found


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "yes", "1", "false", "no", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "yes", "1")


def places_of(images: tuple[str, ...], plan: Plan, output: str | None) -> list[list[Path]]:
    """Where each picture's maps go, one path for each target, or one for all. Checked before the work. Raises InputError."""
    from xcam.contract.files import check_file
    from xcam.errors import InputError
    from xcam.images.writing import WRITABLE

    for image in images:
        check_file(Path(image))
    targets = plan.targets
    names = [_word(target) for target in targets] if len(targets) > 1 and not plan.together else [""]
    folder = Path(output) if output and (os.path.isdir(output) or output.endswith("/")) else None
    file = Path(output) if output and folder is None else None
    if file and len(images) > 1:
        raise InputError(f"{len(images)} pictures cannot all go to {file}; give -o a folder that exists")
    if file and file.suffix.lower() not in (*WRITABLE, ".npz"):
        raise InputError(f"cannot write {file}: its format is not known; use .jpg, .png or .npz")
    if file and plan.together and file.suffix.lower() == ".npz":
        raise InputError(f"{file} holds one map; give one method, layer and class, or draw a .jpg or .png")
    places = []
    for image in images:
        base = file or (folder or Path(image).parent) / f"{Path(image).stem}.cam.jpg"
        places.append([base.with_name(f"{base.stem}.{name}{base.suffix}") if name else base for name in names])
    flat = [place for row in places for place in row]
    for place in flat:
        if not os.path.isdir(place.parent):
            raise InputError(
                f"cannot write {place}: there is no folder {place.parent}; make it first, or choose another -o"
            )
    real = [Path(os.path.realpath(place)) for place in flat]
    for place in real:
        if real.count(place) > 1:
            raise InputError(f"two maps would go to {place}; explain those pictures one by one, each with its own -o")
        if place in [Path(os.path.realpath(image)) for image in images]:
            raise InputError(f"{place} is a picture to explain, and would be overwritten; choose another -o")
    return places


def _word(target: str) -> str:
    """A target as a part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in target)
