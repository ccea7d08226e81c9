"""All rules together: every promised operator has one, and each family has its tests."""

from __future__ import annotations

from pathlib import Path

from xcam_onnx.autodiff import RULES, rules

DEFINED_BY_OTHERS = {"Attention"}
PROMISED = [
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Neg",
    "Abs",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Erf",
    "Sin",
    "Cos",
    "Tanh",
    "Sigmoid",
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Celu",
    "ThresholdedRelu",
    "Clip",
    "HardSigmoid",
    "HardSwish",
    "Swish",
    "Mish",
    "Softplus",
    "Softsign",
    "Gelu",
    "Softmax",
    "LogSoftmax",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "LpNormalization",
    "LRN",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Expand",
    "Tile",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "GatherElements",
    "GatherND",
    "ScatterElements",
    "ScatterND",
    "Pad",
    "Where",
    "Max",
    "Min",
    "Sum",
    "Mean",
    "Identity",
    "Dropout",
    "Cast",
    "Resize",
    "DepthToSpace",
    "SpaceToDepth",
    "Einsum",
    "TopK",
    "CumSum",
    "GridSample",
    "RoiAlign",
    "Attention",
    "DequantizeLinear",
    "QuantizeLinear",
]


def test_every_promised_operator_has_a_rule() -> None:
    assert {("", op) for op in PROMISED if op not in DEFINED_BY_OTHERS} <= set(RULES)


def test_every_family_has_its_tests() -> None:
    assert rules.__file__ is not None
    families = {path.stem for path in Path(rules.__file__).parent.glob("[a-z]*.py")}
    assert {f"test_{family}.py" for family in families} <= {path.name for path in Path(__file__).parent.iterdir()}
    assert {entry.rule.__module__.rpartition(".")[2] for entry in RULES.values()} == families
