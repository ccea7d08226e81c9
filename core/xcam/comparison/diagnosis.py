"""The causes of a difference between two models that a comparison can name. All codes are listed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

CODES: Mapping[str, str] = MappingProxyType(
    {
        "rgb-bgr": "The order of the input's colour channels: RGB in one model, BGR in the other.",
        "input-scale": "The scale of the input: the second model expects values scaled differently.",
        "uneven-padding": "Uneven padding (SAME) in one model, even padding in the other: values are shifted by a pixel.",
        "border-padding": "The values of the padding: zeros in one model, another kind of padding in the other.",
        "channel-order": "The order of the layer's channels.",
        "value-order": "The order of the values of a vector.",
        "flattening-order": "The order in which a layer is flattened: channels first or channels last.",
        "batchnorm-statistics": "The mean, the variance or the epsilon of a batch normalisation, or a bias before it.",
        "channel-scale": "A scale and an offset for each channel: a folded batch normalisation, or a bias.",
        "constant-factor": "One factor for all values of the layer.",
        "layernorm-epsilon": "The epsilon of a layer normalisation.",
        "activation": "Two different activation functions.",
        "interpolation": "The mode of interpolation, or the alignment of corners, where a layer is resized.",
        "half-precision": "Values or weights that were rounded to float16 or bfloat16.",
    }
)
"""Code → its meaning. Codes are stable: scripts may compare them."""


@dataclass(frozen=True)
class Diagnosis:
    """The likely cause of a difference."""

    code: str
    """One of `CODES`, for scripts."""
    text: str
    """The cause in this comparison, as text for the user."""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown code {self.code!r} of a diagnosis; add it to CODES")

    def to_dict(self) -> dict[str, str]:
        """Return `{"code": …, "text": …}`."""
        return asdict(self)


FLATTENING = Diagnosis(
    "flattening-order", "the order of flattening differs: [channels, height, width] against [height, width, channels]"
)
HALF_PRECISION = Diagnosis("half-precision", "values or weights were rounded to float16 or bfloat16")
