"""The rules, by family. Importing this package fills the registry."""

from xcam_onnx.autodiff.rules import (  # noqa: F401
    activation,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    reduction,
    resize,
    sampling,
    shape,
)
