"""How an image fits the size of a model's input: stretched, cropped, or whole with a border."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from xcam.errors import InputError, nearest

Mode = Literal["stretch", "crop", "letterbox", "pad"]
Interpolation = Literal["area", "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Library = Literal["torchvision", "timm", "transformers", "ultralytics", "keras"]

LARGEST = 16384
"""The largest side in pixels; larger values are refused as mistakes."""
BLACK, GREY = (0, 0, 0), (114, 114, 114)
DEFAULTS: dict[str, dict[str, Any]] = {
    "stretch": {"interpolation": "area", "antialias": True, "fill": BLACK, "like": "torchvision"},
    "crop": {"interpolation": "bilinear", "antialias": True, "fill": BLACK, "like": "torchvision"},
    "letterbox": {"interpolation": "bilinear", "antialias": False, "fill": GREY, "like": "ultralytics"},
    "pad": {"interpolation": "bilinear", "antialias": True, "fill": BLACK, "like": "timm"},
}
"""The defaults of each mode: those of the library that it is known from."""


@dataclass(frozen=True)
class Fit:
    """How an image becomes an input of the model's size; fields that are None get the defaults of the mode.

    The image is resized, and then its centre is cropped, or it gets a border, where its size is not that of the input.
    """

    mode: Mode = "stretch"
    """`stretch`: both sides are resized separately. `crop`: the ratio is kept and the input is full, parts of the image are
    cut off. `letterbox` and `pad`: the ratio is kept and the whole image is visible, with a border; `letterbox` has the
    defaults of YOLO, `pad` those of classifiers."""
    resize: int | tuple[int, int] | None = None
    """The size before the crop or the border: the shorter side, or (height, width) in pixels. For `stretch` it is (height,
    width). None: as `crop_pct` states, or the size of the input."""
    crop_pct: float | None = None
    """The size of the input, divided by the size before the crop, 0.01…1 (timm's name)."""
    longest: int | None = None
    """The largest length of the longer side, where `resize` states the shorter one."""
    interpolation: Interpolation | None = None
    """`area` averages where the image shrinks; the others have the names of PIL."""
    antialias: bool | None = None
    """Whether the filter widens where the image shrinks, as in PIL; False: as in OpenCV."""
    fill: int | tuple[int, int, int] | Literal["mean"] | None = None
    """The colour of the border, 0…255; `mean`: the mean of the preprocessing."""
    centred: bool = True
    """Whether the image is in the centre of the input; False: in the top left corner, with the border right and below."""
    enlarge: bool = True
    """Whether a small image is enlarged; else its border is wider."""
    multiple: int = 1
    """The sides of an input of any size are multiples of it."""
    like: Library | None = None
    """The library whose rounding of sizes and offsets is used."""

    def __post_init__(self) -> None:
        """Fill in the defaults of the mode and check the values.

        Raises:
            InputError: A value cannot be used.
        """
        _check_choice("fit", self.mode, Mode)
        for name, value in DEFAULTS[self.mode].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        _check_choice("interpolation", self.interpolation, Interpolation)
        _check_choice("library", self.like, Library)
        if isinstance(self.fill, int):
            object.__setattr__(self, "fill", (self.fill,) * 3)
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        for side in (*sides, self.longest, self.multiple):
            if side is not None and not (type(side) is int and 0 < side <= LARGEST):
                raise InputError(f"cannot fit images to {side!r} pixels; give an integer from 1 to {LARGEST}")
        if isinstance(self.resize, tuple) and len(self.resize) != 2:
            raise InputError(f"cannot use resize={self.resize}; give the shorter side, or (height, width)")
        if self.mode == "stretch" and isinstance(self.resize, int):
            raise InputError("resize of fit 'stretch' is HEIGHTxWIDTH; choose fit 'crop' to keep the ratio")
        if not self.antialias and self.interpolation in ("area", "box", "hamming"):
            raise InputError(f"interpolation {self.interpolation!r} needs antialias; choose bilinear or bicubic")
        if self.crop_pct is not None and not 0.01 <= self.crop_pct <= 1:
            raise InputError(f"cannot use crop_pct={self.crop_pct}; give a number from 0.01 to 1, as in 0.875")
        if self.crop_pct is not None and self.resize is not None:
            raise InputError("resize and crop_pct both state the size before the crop; give one of them")
        if self.longest is not None and not isinstance(self.resize, int):
            raise InputError("longest limits the longer side where resize states the shorter one; give resize too")
        colour = self.fill if isinstance(self.fill, tuple) else (0, 0, 0)
        if len(colour) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in colour):
            raise InputError(f"cannot use the fill {self.fill!r}; give one number or three from 0 to 255, or mean")
        if not isinstance(self.fill, tuple) and self.fill != "mean":
            raise InputError(f"cannot use the fill {self.fill!r}; give one number or three from 0 to 255, or mean")

    def __str__(self) -> str:
        """Return the text that `parse` reads: the mode, and the values that are not its defaults."""
        plain = Fit(self.mode)
        items = [
            f"{name}={_text(value)}"
            for name, value in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self)[1:])
            if value != getattr(plain, name)
        ]
        return ":".join([self.mode, ",".join(items)] if items else [self.mode])


def parse(value: str | Fit | None) -> Fit | None:
    """Return a fit from its text: a mode, and its values after a colon.

    Args:
        value: `crop`, `crop:0.875` (crop_pct), `crop:256` (resize), `letterbox:fill=0,centred=no`, a Fit, or None.

    Raises:
        InputError: The value is none of these.
    """
    if value is None or isinstance(value, Fit):
        return value
    mode, _, rest = str(value).strip().partition(":")
    _check_choice("fit", mode, Mode)
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        name, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            name, text = ("crop_pct" if "." in name else "resize"), name
        names = [field.name for field in dataclasses.fields(Fit)[1:]]
        if name not in names:
            raise InputError(f"unknown value {name!r} of a fit; {nearest(name, names)}")
        if name in values:
            raise InputError(f"fit {value!r} states {name} twice; give it once")
        values[name] = _parsed(name, text)
    return Fit(mode, **values)  # type: ignore[arg-type]  # checked


def of_ultralytics(task: str, head: str = "") -> Fit:
    """Return the fit of ultralytics' predictors.

    Args:
        task: `detect`, `segment`, `classify`, … as ultralytics names it.
        head: The class of the model's head or of the model: RT-DETR takes stretched images.
    """
    if task == "classify":
        return Fit("crop")
    if task == "depth" or head.startswith("RTDETR"):
        return Fit("stretch", interpolation="bilinear", antialias=False, like="ultralytics")
    return Fit("letterbox")


def for_size(fit: Fit, stated: Sequence[int | None] | None, size: Sequence[int | None]) -> Fit:
    """Return the fit of a model whose size the caller changes: the share of the image that is cut off remains.

    Args:
        fit: The fit that the model states.
        stated: The size that it states.
        size: The size that the caller gives.
    """
    if fit.resize is None or fit.mode in ("pad", "letterbox"):
        return replace(fit, resize=None, longest=None)
    old, new = [n for n in stated or () if n], [n for n in size if n]
    if not old or not new:
        return fit
    factor = min(new) / min(old)
    sides = fit.resize if isinstance(fit.resize, tuple) else (fit.resize,)
    scaled = tuple(max(round(side * factor), 1) for side in sides)
    return replace(fit, resize=(scaled[0], scaled[1]) if len(scaled) > 1 else scaled[0])


def _check_choice(kind: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"unknown {kind} {value!r}; {nearest(str(value), get_args(choices))}")


def _parsed(name: str, text: str) -> Any:
    """Return a field's value from its text. Raises InputError."""
    try:
        if name in ("antialias", "centred", "enlarge"):
            return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
        if name == "crop_pct":
            return float(text)
        if name in ("interpolation", "like") or text == "mean":
            return text
        numbers = tuple(int(part) for part in text.lower().replace("/", "x").split("x"))
        return numbers[0] if len(numbers) == 1 else numbers
    except (KeyError, ValueError):
        examples = {"crop_pct": "0.875", "resize": "256 or 256x320", "fill": "114, 0/0/0 or mean"}
        default = "yes or no" if name in ("antialias", "centred", "enlarge") else "a number of pixels"
        raise InputError(f"cannot use {name}={text}; give {examples.get(name, default)}") from None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        value = value[:1] if len(value) == 3 and len({*value}) == 1 else value
        return ("x" if len(value) == 2 else "/").join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


STRETCH = Fit()
"""The fit of models that do not state one."""
