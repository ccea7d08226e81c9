"""The causes of a difference between two models that a comparison can name. All codes are listed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

CODES: Mapping[str, str] = MappingProxyType(
    {
        "rgb-bgr": "The order of the input's colour channels: RGB in one model, BGR in the other.",
        "input-scale": "The scale of the input, or of each of its channels: another factor, mean or standard deviation.",
        "mirrored-input": "The direction of the input's axes: mirrored, upside down or transposed in one model.",
        "uneven-padding": "Uneven padding (SAME) in one model, even padding in the other: values are shifted by a pixel.",
        "border-padding": "The values of the padding: zeros in one model, another kind of padding in the other.",
        "channel-order": "The order of the layer's channels.",
        "value-order": "The order of the values of a vector.",
        "flattening-order": "The order in which a layer is flattened: channels first or channels last.",
        "flipped-kernel": "The direction of a kernel's axes: mirrored or transposed in one model.",
        "batchnorm-statistics": "The mean, the variance or the epsilon of a batch normalisation, or the scale of the weights or a bias ahead of it.",
        "batchnorm-training": "A batch normalisation in training mode: it uses the statistics of the batch.",
        "dropout-training": "A dropout in training mode: two runs on the same image differ.",
        "missing-bias": "A bias that one of the models does not have.",
        "channel-scale": "A scale and an offset for each channel: a folded batch normalisation, or a bias.",
        "constant-factor": "One factor for all values of the layer.",
        "constant-channel": "Channels that are constant in one model only: pruned, or without weights.",
        "layernorm-epsilon": "The epsilon of a layer normalisation.",
        "activation": "Two different activation functions.",
        "last-activation": "Two different activations at the output: softmax, sigmoid or none.",
        "pooling": "The kind of pooling: the maximum in one model, the mean in the other, or another count of the padding.",
        "interpolation": "The mode of interpolation, or the alignment of corners, where a layer is resized.",
        "missing-skip": "A skip connection that one of the models does not have.",
        "exchanged-layers": "Two layers of equal shape that were exchanged, or the weights of one used for the other.",
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

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "rgb-bgr": "Convert the image's channels to the other order, or reverse the channels of the first kernel.",
        "input-scale": "Scale images as the first model does, or correct the constants of the scaling inside the second.",
        "mirrored-input": "Turn the image back before it enters the second model.",
        "uneven-padding": "Pad explicitly ahead of the layer, as the first model does, and set its own padding to zero.",
        "border-padding": "Use the padding mode of the first model.",
        "channel-order": "Copy the weights of this layer again, with the channels in the order of the first model.",
        "value-order": "Copy the weights of this layer again, with the values in the order of the first model.",
        "flattening-order": "Transpose to the first model's order ahead of the flattening, or reorder the weights behind it.",
        "flipped-kernel": "Copy the kernel again, with its axes in the order of the second framework.",
        "batchnorm-statistics": "Copy mean, variance and epsilon of the batch normalisation again, and the weights ahead of it.",
        "batchnorm-training": "Export in evaluation mode: model.eval(), or training=False.",
        "dropout-training": "Export in evaluation mode: model.eval(), or training=False.",
        "missing-bias": "Copy the bias.",
        "channel-scale": "Copy the weights, the bias and the batch normalisation of this layer again.",
        "constant-factor": "Look for a factor in the weights, or for a scaling ahead of this layer.",
        "constant-channel": "Copy the weights of these channels, or leave the layer out of pruning.",
        "layernorm-epsilon": "Set the epsilon of the first model.",
        "activation": "Use the activation of the first model, with the same approximation.",
        "last-activation": "Use the same activation at the end, or compare the class scores ahead of it.",
        "pooling": "Use the pooling of the first model, with the same count of the padding.",
        "interpolation": "Set the mode and the alignment of corners of the first model.",
        "missing-skip": "Add the skip connection.",
        "exchanged-layers": "Copy the weights of both layers again, each from its counterpart.",
        "half-precision": "Convert in float32, or accept the rounding.",
        "half-overflow": "Keep this layer in float32, or use bfloat16.",
        "half-underflow": "Keep this layer in float32, or scale its values.",
        "quantized": "Nothing has to be done.",
        "narrow-range": "Calibrate with more images, or with the smallest and largest value (min–max) at this layer.",
        "wide-range": "Calibrate without outliers (percentile, entropy), or check the range of this layer.",
        "per-tensor-weights": "Quantise weights with a scale of each channel (per_channel=True), or leave this layer in float.",
        "wrong-scale": "Write the same scale for the quantisation and its inverse.",
        "wrong-zero-point": "Write the same zero point for the quantisation and its inverse.",
        "coarse-bias": "Store the bias in int32, with the product of the scales of input and weights as its scale.",
    }
)
"""Code → the remedy, one sentence."""


@dataclass(frozen=True)
class Diagnosis:
    """The cause of a difference."""

    code: str
    """One of `CODES`, for scripts."""
    text: str
    """The cause in this comparison, as text for the user."""
    proof: Literal["rerun", "fit"] = "fit"
    """`rerun`: with the mistake undone, the difference is gone, on another image too. `fit`: it fits the values."""
    left: float | None = None
    """The share of the difference that is left when the mistake is undone, on the worst image; None: not measured."""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown code {self.code!r} of a diagnosis; add it to CODES")

    @property
    def remedy(self) -> str:
        """One sentence on how to mend it."""
        return REMEDIES[self.code]

    @property
    def evidence(self) -> str:
        """How certain the cause is, as text."""
        if self.left is None:
            return "proven by running it again" if self.proof == "rerun" else "fits the values"
        share = "less than 0.1 %" if self.left < 1e-3 else f"{100 * self.left:.2g} %"
        verb = "proven: undone" if self.proof == "rerun" else "fits: undone"
        return f"{verb}, it leaves {share} of the difference"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        fields = {"code": self.code, "text": self.text, "proof": self.proof, "left": self.left}
        return fields | {"remedy": self.remedy}


def half_precision(dtype: str = "float16 or bfloat16") -> Diagnosis:
    """Return the diagnosis of values or weights that were rounded to a type."""
    return Diagnosis("half-precision", f"values or weights were rounded to {dtype}")
