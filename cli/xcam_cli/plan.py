"""The plan of `xcam explain`: methods, layers and targets, how they are drawn, and the output paths."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """The explanations of each image, and how they are drawn."""

    layers: tuple[str, ...]
    targets: tuple[str, ...]
    fuse: str | None
    methods: tuple[str, ...]
    options: dict[str, Any]
    """Options of `xcam.explain`."""
    drawing: dict[str, Any]
    as_json: bool
    as_grid: bool
    """One output file holds all explanations of an image, side by side."""

    @property
    def target_list(self) -> list[str] | None:
        """The targets, or None for the top class."""
        return list(self.targets) or None

    @property
    def layer_groups(self) -> list[Any]:
        """One entry for each call of `explain`: a layer, or the list of all layers where they are fused."""
        return [list(self.layers)] if self.fuse else list(self.layers) or [None]


def make_plan(
    layers: tuple[str, ...], targets: tuple[str, ...], fuse: str | None, options: dict[str, Any]
) -> tuple[Plan, dict[str, Any]]:
    """Return the plan from the command's options, and the remaining options, which are those of `xcam.load`.

    Raises:
        InputError: options contradict each other, or a name is unknown.
    """
    from xcam.errors import InputError
    from xcam.images.overlay import check_drawing
    from xcam.methods.registry import get
    from xcam.targets import several

    if fuse and len(layers) < 2:
        raise InputError("--fuse needs two layers or more; repeat -l")
    for kind, names in (("layer", layers), ("class", targets)):
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{kind} {name!r} is given twice; name each once")
    methods = tuple(dict.fromkeys(options.pop("methods"))) or ("gradcam",)
    if "all" not in methods:
        for name in methods:
            get(name)
    drawing = {name: options.pop(name) for name in ("colormap", "alpha", "blend", "style")}
    if options.pop("signed"):
        if drawing["style"] == "contour":
            raise InputError("--signed means --style signed, which contradicts --style contour; leave one out")
        drawing["style"] = "signed"
    if drawing["style"] == "signed" and (fuse or options["normalize"] != "max"):
        name = "--fuse" if fuse else "--normalize"
        raise InputError(f"{name} does not apply to signed maps; leave it out, or choose another --style")
    check_drawing(**drawing)
    explain_options = {name: options.pop(name) for name in ("score", "normalize", "augment")}
    explain_options["method_options"] = parse_method_options(options.pop("settings"), methods)
    side_by_side = len(methods) > 1 or "all" in methods or (len(layers) > 1 and not fuse)
    as_grid = options.pop("grid") or side_by_side or any(several(target) for target in targets)
    plan = Plan(layers, targets, fuse, methods, explain_options, drawing, options.pop("as_json"), as_grid)
    return plan, options


def parse_method_options(texts: tuple[str, ...], methods: tuple[str, ...]) -> dict[str, Any]:
    """Parse `n=8` to {"n": 8}, with the type of the option's default.

    Raises:
        InputError: the option is unknown, given twice, or its value has another type; or several methods are named.
    """
    from xcam.errors import InputError
    from xcam.methods.registry import get

    if texts and (len(methods) > 1 or "all" in methods):
        raise InputError("-O sets an option of one method; name one with --method")
    parsed: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} is not an option of a method; give NAME=VALUE, as in n=8")
        method = get(methods[0])
        method.checked({name: method.options.get(name)})
        if name in parsed:
            raise InputError(f"option {name!r} is given twice; give it once")
        kind = type(method.options[name])
        parse = _parse_bool if kind is bool else kind if kind in (int, float) else str
        with contextlib.suppress(ValueError):
            parsed[name] = parse(value)
        method.checked({name: parsed.get(name, value)})
    return parsed


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "yes", "1", "false", "no", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "yes", "1")


def split_output(values: tuple[str, ...], named: str | None) -> tuple[str | None, str | None]:
    """Return the file or folder to write, and the name of the model's output, from the values of `-o`.

    A value that ends in a suffix or in `/`, or is a folder, is written to; any other can only be the name of an output.

    Args:
        values: The values of `-o`; the last file counts.
        named: The value of `--model-output`.

    Raises:
        InputError: Two outputs are named.
    """
    from xcam.errors import InputError

    files = [value for value in values if Path(value).suffix or value.endswith("/") or os.path.isdir(value)]
    names = [value for value in values if value not in files]
    if len(names) > 1 or (names and named is not None):
        raise InputError(f"one output is explained, not {' and '.join([*names, *filter(None, [named])])}; name one")
    return files[-1] if files else None, names[0] if names else None


def output_paths(images: tuple[str, ...], plan: Plan, output: str | None) -> list[list[Path]]:
    """Return the output paths of each image, one for each target or one for all, after checking them.

    Raises:
        InputError: an image is missing, a path cannot be written, or two explanations would have the same path.
    """
    from xcam.contract.files import check_file
    from xcam.errors import InputError
    from xcam.images import arrays
    from xcam.images.writing import WRITABLE

    sources = [arrays.split(image) if arrays.is_array_file(image) else (Path(image), None) for image in images]
    for source, _ in sources:
        check_file(source)
    targets = plan.targets
    suffixes = [_file_name(target) for target in targets] if len(targets) > 1 and not plan.as_grid else [""]
    folder = Path(output) if output and (os.path.isdir(output) or output.endswith("/")) else None
    file = Path(output) if output and folder is None else None
    if file and len(images) > 1:
        raise InputError(f"{len(images)} images cannot all be written to {file}; give -o a folder that exists")
    if file and file.suffix.lower() not in (*WRITABLE, *arrays.SUFFIXES):
        raise InputError(f"cannot write {file}: unknown format {file.suffix!r}; use .jpg, .png, .npz or .npy")
    if file and plan.as_grid and file.suffix.lower() in arrays.SUFFIXES:
        raise InputError(f"{file} holds one map; give one method, layer and class, or write a .jpg or .png")
    rows = []
    for source, name in sources:
        stem = f"{source.stem}.{_file_name(name)}" if name else source.stem
        base = file or (folder or source.parent) / f"{stem}.cam.jpg"
        rows.append([base.with_name(f"{base.stem}.{s}{base.suffix}") if s else base for s in suffixes])
    paths = [path for row in rows for path in row]
    for path in paths:
        if not os.path.isdir(path.parent):
            raise InputError(
                f"cannot write {path}: folder {path.parent} does not exist; create it, or choose another -o"
            )
    real_paths = [Path(os.path.realpath(path)) for path in paths]
    for path in real_paths:
        if real_paths.count(path) > 1:
            raise InputError(
                f"two maps would be written to {path}; explain the images separately, each with its own -o"
            )
        if path in [Path(os.path.realpath(source)) for source, _ in sources]:
            raise InputError(f"{path} is an image to explain and would be overwritten; choose another -o")
    return rows


def _file_name(target: str) -> str:
    """Turn a target into a part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in target)
