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
        "half-overflow": "Values beyond 65504, the largest float16.",
        "half-underflow": "Values below 6·10⁻⁵: float16 stores them with fewer digits, or as zero.",
        "quantized": "Quantisation to integers: every layer differs as much as the number of bits explains.",
        "narrow-range": "A range of a quantised layer that is too narrow: its largest values are clipped.",
        "wide-range": "A range of a quantised layer that is too wide: its values use few of the levels.",
        "per-tensor-weights": "Quantised weights with one scale, whose channels have different ranges.",
        "wrong-scale": "A wrong scale of quantised values or weights.",
        "wrong-zero-point": "A wrong zero point of quantised values.",
        "coarse-bias": "A bias that is quantised in steps that are too large.",
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


def half_precision(dtype: str = "float16 or bfloat16") -> Diagnosis:
    """Return the diagnosis of values or weights that were rounded to a type."""
    return Diagnosis("half-precision", f"values or weights were rounded to {dtype}")
