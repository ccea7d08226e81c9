"""Functions of TensorFlow in a Keras 2 model (TFOpLambda), computed with keras.ops: on every engine, with the same numbers.

Each function takes the arguments that TensorFlow's takes, by TensorFlow's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from xcam.errors import ModelError

PACKAGE = "xcam_keras2"
"""The package under which Keras registers these layers and functions."""


@keras.saving.register_keras_serializable(PACKAGE)  # type: ignore[untyped-decorator]
def hard_sigmoid(x: Any) -> Any:
    """Return Keras 2's hard sigmoid, 0.2·x + 0.5 within 0…1. That of Keras 3 has the slope 1/6."""
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@keras.saving.register_keras_serializable(PACKAGE)
class Operation(keras.layers.Layer):  # type: ignore[misc]
    """A function of TensorFlow on one or more tensors, as a layer."""

    def __init__(self, function: str, arguments: Any, **kwargs: Any) -> None:
        """Set the function.

        Args:
            function: name in TensorFlow, such as `math.truediv`.
            arguments: [positional arguments, keyword arguments], in which `{"tensor": k}` is input k of the layer.
            kwargs: arguments of Layer.

        Raises:
            ModelError: the function is unknown.
        """
        super().__init__(autocast=False, **kwargs)
        if function not in FUNCTIONS:
            raise ModelError(f"cannot rebuild layer {self.name}: xcam does not know tf.{function}")
        self.function, self.arguments = function, arguments

    def call(self, inputs: Sequence[Any]) -> Any:
        """Compute the function."""

        def filled(value: Any) -> Any:
            if isinstance(value, dict):
                return (
                    inputs[value["tensor"]] if set(value) == {"tensor"} else {k: filled(v) for k, v in value.items()}
                )
            return type(value)(map(filled, value)) if isinstance(value, list | tuple) else value

        positional, named = filled(self.arguments)
        return FUNCTIONS[self.function](*positional, **{key: v for key, v in named.items() if key != "name"})

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return super().get_config() | {"function": self.function, "arguments": self.arguments}


@keras.saving.register_keras_serializable(PACKAGE)
class Preprocess(keras.layers.Layer):  # type: ignore[misc]
    """`preprocess_input` of a module of keras.applications."""

    def __init__(self, module: str, **kwargs: Any) -> None:
        """Set the module's name."""
        super().__init__(**kwargs)
        self.module = module

    def call(self, inputs: Any) -> Any:
        """Compute the function."""
        return getattr(keras.applications, self.module).preprocess_input(inputs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return super().get_config() | {"module": self.module}


@keras.saving.register_keras_serializable(PACKAGE)
class LayerScale(keras.layers.Layer):  # type: ignore[misc]
    """A factor for each channel: a part of ConvNeXt."""

    def __init__(self, init_values: float, projection_dim: int, **kwargs: Any) -> None:
        """Set the initial factor and the number of channels."""
        super().__init__(**kwargs)
        self.init_values, self.projection_dim = init_values, projection_dim

    def build(self, input_shape: Any) -> None:
        """Create the weight."""
        initializer = keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight(shape=(self.projection_dim,), initializer=initializer, name="gamma")

    def call(self, inputs: Any) -> Any:
        """Multiply."""
        return inputs * self.gamma

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return super().get_config() | {"init_values": self.init_values, "projection_dim": self.projection_dim}


@keras.saving.register_keras_serializable(PACKAGE)
class StochasticDepth(keras.layers.Layer):  # type: ignore[misc]
    """A residual branch that training drops at random: the identity, in evaluation mode. A part of ConvNeXt."""

    def __init__(self, drop_path_rate: float, **kwargs: Any) -> None:
        """Set the rate."""
        super().__init__(**kwargs)
        self.drop_path_rate = drop_path_rate

    def call(self, inputs: Any) -> Any:
        """Return the input."""
        return inputs

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return super().get_config() | {"drop_path_rate": self.drop_path_rate}


@keras.saving.register_keras_serializable(PACKAGE)
class CustomScaleLayer(keras.layers.Layer):  # type: ignore[misc]
    """The sum of a value and a scaled residual: a part of InceptionResNetV2."""

    def __init__(self, scale: float, **kwargs: Any) -> None:
        """Set the factor."""
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, inputs: Any) -> Any:
        """Add."""
        return inputs[0] + inputs[1] * self.scale

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return super().get_config() | {"scale": self.scale}


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _alike(*values: Any) -> list[Any]:
    """Return constants as arrays of the tensors' dtype, as TensorFlow converts them."""
    dtype = next((keras.backend.standardize_dtype(v.dtype) for v in values if _is_tensor(v)), "float32")
    return [v if _is_tensor(v) else ops.convert_to_tensor(v, dtype) for v in values]


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(*_alike(x, y))


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x=None, features=None, input=None, logits=None, a=None: function(
        next(v for v in (x, features, input, logits, a) if v is not None)
    )


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input_tensor=None, axis=None, keepdims=False, x=None: function(
        x if input_tensor is None else input_tensor, axis=_axes(axis), keepdims=keepdims
    )


def _axes(axis: Any) -> Any:
    return tuple(axis) if isinstance(axis, list | tuple) else axis


def _divide(x: Any, y: Any) -> Any:
    return ops.true_divide(*_alike(x, y))


def _add_n(inputs: Sequence[Any]) -> Any:
    return sum(inputs[1:], start=inputs[0])


def _clip(t: Any, clip_value_min: Any, clip_value_max: Any) -> Any:
    return ops.minimum(ops.maximum(t, *_alike(t, clip_value_min)[1:]), *_alike(t, clip_value_max)[1:])


def _softmax(logits: Any = None, axis: int | None = -1, x: Any = None) -> Any:
    return ops.softmax(x if logits is None else logits, axis=-1 if axis is None else axis)


def _leaky_relu(features: Any = None, alpha: float = 0.2, x: Any = None) -> Any:
    return ops.leaky_relu(x if features is None else features, negative_slope=alpha)


def _gelu(features: Any, approximate: bool = False) -> Any:
    return ops.gelu(features, approximate=approximate)


def _silu(features: Any, beta: float = 1.0) -> Any:
    return features * ops.sigmoid(beta * features)


def _keras_relu(x: Any, alpha: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Any:
    return keras.activations.relu(x, negative_slope=alpha, max_value=max_value, threshold=threshold)


def _l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=_axes(axis), keepdims=True), epsilon))


def _matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
) -> Any:
    a, b = _alike(a, b)
    a = ops.swapaxes(a, -1, -2) if transpose_a or adjoint_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b or adjoint_b else b)


def _reshape(tensor: Any, shape: Sequence[Any]) -> Any:
    return ops.reshape(tensor, tuple(-1 if n is None else int(n) for n in shape))


def _transpose(a: Any, perm: Sequence[int] | None = None, conjugate: bool = False) -> Any:
    return ops.transpose(a, perm)


def _squeeze(input: Any, axis: Any = None, squeeze_dims: Any = None) -> Any:
    axis = squeeze_dims if axis is None else axis
    return ops.squeeze(input, _axes(axis) if axis != [] else None)


def _expand_dims(input: Any = None, axis: int = -1, x: Any = None) -> Any:
    return ops.expand_dims(x if input is None else input, axis)


def _concat(values: Sequence[Any], axis: int) -> Any:
    return ops.concatenate(_alike(*values), axis=axis)


def _concatenate(tensors: Sequence[Any], axis: int = -1) -> Any:
    return _concat(tensors, axis)


def _stack(values: Sequence[Any], axis: int = 0) -> Any:
    return ops.stack(_alike(*values), axis=axis)


def _split(value: Any, num_or_size_splits: Any, axis: int = 0, num: Any = None) -> Any:
    if isinstance(num_or_size_splits, list | tuple):
        num_or_size_splits = np.cumsum(num_or_size_splits)[:-1].tolist()
    return ops.split(value, num_or_size_splits, axis=axis)


def _unstack(value: Any, num: int | None = None, axis: int = 0) -> Any:
    return ops.unstack(value, num=num, axis=axis)


def _getitem(tensor: Any, slice_spec: Any) -> Any:
    spec = slice_spec if isinstance(slice_spec, list | tuple) else [slice_spec]
    parts = [index(value) for value in spec]
    for i, part in enumerate(parts):
        if part == slice(None, None, -1):  # torch has no negative steps
            tensor, parts[i] = ops.flip(tensor, i - len(parts) if Ellipsis in parts[:i] else i), slice(None)
    return tensor[tuple(parts)]


def index(value: Any) -> Any:
    """Return a part of an index: a number, None, a slice or an ellipsis, from their forms in a configuration."""
    if isinstance(value, dict):
        return slice(value["start"], value["stop"], value["step"]) if "start" in value else Ellipsis
    return value


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: float = 0) -> Any:
    mode = mode.lower()
    return ops.pad(tensor, paddings, mode, constant_values=constant_values if mode == "constant" else None)


def _cast(x: Any, dtype: Any) -> Any:
    return ops.cast(x, dtype if isinstance(dtype, str) else keras.backend.standardize_dtype(dtype))


def _format(data_format: str | None) -> str:
    return "channels_first" if data_format and data_format.startswith("NC") else "channels_last"


def _window(value: Any) -> Any:
    """Return a window or stride for the spatial axes alone."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(value[1:-1]) if len(value) == 4 else tuple(value) if len(value) > 1 else value[0]


def _pool(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input=None, ksize=None, strides=None, padding="VALID", data_format="NHWC", value=None: function(
        value if input is None else input, _window(ksize), _window(strides), padding.lower(), _format(data_format)
    )


def _conv2d(
    input: Any,
    filter: Any = None,
    strides: Any = 1,
    padding: str = "VALID",
    use_cudnn_on_gpu: bool = True,
    data_format: str = "NHWC",
    dilations: Any = 1,
    filters: Any = None,
) -> Any:
    input, kernel = _alike(input, filters if filter is None else filter)
    if not isinstance(padding, str):
        raise ModelError("explicit padding of tf.nn.conv2d")
    window = _window(1 if dilations is None else dilations)
    return ops.conv(input, kernel, _window(strides), padding.lower(), _format(data_format), window)


def _bias_add(value: Any, bias: Any, data_format: str | None = None) -> Any:
    value, bias = _alike(value, bias)
    if _format(data_format) == "channels_first":
        bias = ops.reshape(bias, (-1, *[1] * (len(value.shape) - 2)))
    return value + bias


def _keras_bias_add(x: Any, bias: Any, data_format: str | None = None) -> Any:
    return _bias_add(x, bias, "NC" if data_format == "channels_first" else None)


def _resize(
    images: Any,
    size: Sequence[int],
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Any:
    if preserve_aspect_ratio or str(method).lower() not in ("bilinear", "nearest", "bicubic", "lanczos3", "lanczos5"):
        raise ModelError("preserve_aspect_ratio or a method of tf.image.resize")
    interpolation = str(method).lower()
    return ops.image.resize(images, tuple(size), interpolation, antialias, data_format="channels_last")


def _where(condition: Any, x: Any = None, y: Any = None) -> Any:
    return ops.where(condition, *_alike(x, y))


def _einsum(equation: str, *operands: Any) -> Any:
    return ops.einsum(equation, *operands)


def _gather(
    params: Any, indices: Any, axis: int | None = 0, batch_dims: int = 0, validate_indices: Any = None
) -> Any:
    if batch_dims:
        raise ModelError("batch_dims of tf.gather")
    return ops.take(params, indices, axis=axis or 0)


def _tile(input: Any, multiples: Sequence[int]) -> Any:
    return ops.tile(input, multiples)


def _depth_to_space(input: Any, block_size: int, data_format: str = "NHWC") -> Any:
    if data_format != "NHWC":
        raise ModelError("data_format of tf.nn.depth_to_space")
    _, height, width, channels = input.shape
    deep = channels // block_size**2
    split = ops.reshape(input, (-1, height, width, block_size, block_size, deep))
    return ops.reshape(ops.transpose(split, (0, 1, 3, 2, 4, 5)), (-1, height * block_size, width * block_size, deep))


def _depthwise_conv2d(
    input: Any,
    filter: Any,
    strides: Any = 1,
    padding: str = "VALID",
    rate: Any = None,
    data_format: str | None = None,
    dilations: Any = None,
) -> Any:
    input, kernel = _alike(input, filter)
    rate = _window(next((value for value in (rate, dilations) if value is not None), 1))
    return ops.depthwise_conv(input, kernel, _window(strides), padding.lower(), _format(data_format), rate)


def _space_to_depth(input: Any, block_size: int, data_format: str = "NHWC") -> Any:
    if data_format != "NHWC":
        raise ModelError("data_format of tf.nn.space_to_depth")
    _, height, width, channels = input.shape
    height, width = height // block_size, width // block_size
    split = ops.reshape(input, (-1, height, block_size, width, block_size, channels))
    return ops.reshape(ops.transpose(split, (0, 1, 3, 2, 4, 5)), (-1, height, width, block_size**2 * channels))


def _slice(input_: Any, begin: Sequence[int], size: Sequence[int]) -> Any:
    return input_[tuple(slice(b, None if n == -1 else b + n) for b, n in zip(begin, size, strict=True))]


def _central_crop(image: Any, central_fraction: float) -> Any:
    starts = [int((n - n * central_fraction) / 2) for n in image.shape[-3:-1]]
    return image[
        (..., *(slice(start, n - start) for start, n in zip(starts, image.shape[-3:-1], strict=True)), slice(None))
    ]


def _norm(
    tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: bool | None = None, keep_dims: Any = None
) -> Any:
    keepdims = bool(keepdims or keep_dims)
    return ops.norm(
        tensor,
        None if ord == "euclidean" and isinstance(axis, list) else 2 if ord == "euclidean" else ord,
        _axes(axis),
        keepdims,
    )


def _one_hot(indices: Any, depth: int, axis: int | None = None) -> Any:
    return ops.one_hot(indices, depth, axis=-1 if axis is None else axis)


def _image(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda image: function(image)


def _convert_image_dtype(image: Any, dtype: Any, saturate: bool = False) -> Any:
    kind = keras.backend.standardize_dtype(image.dtype)
    if "float" not in str(dtype):
        raise ModelError("an integer dtype of tf.image.convert_image_dtype")
    cast = ops.cast(image, dtype)
    return cast if "float" in kind else cast * (1.0 / np.iinfo(kind).max)


BINARY = {
    "math.add": ops.add,
    "__operators__.add": ops.add,
    "math.subtract": ops.subtract,
    "math.multiply": ops.multiply,
    "math.divide": ops.true_divide,
    "math.truediv": ops.true_divide,
    "RealDiv": ops.true_divide,
    "math.floordiv": ops.floor_divide,
    "math.mod": ops.mod,
    "math.floormod": ops.mod,
    "math.pow": ops.power,
    "math.maximum": ops.maximum,
    "math.minimum": ops.minimum,
    "math.greater": ops.greater,
    "math.greater_equal": ops.greater_equal,
    "math.less": ops.less,
    "math.less_equal": ops.less_equal,
    "math.equal": ops.equal,
    "math.not_equal": ops.not_equal,
    "math.logical_and": ops.logical_and,
    "math.logical_or": ops.logical_or,
    "math.divide_no_nan": lambda x, y: ops.where(y == 0, ops.zeros_like(x), x / ops.where(y == 0, 1.0, y)),
    "math.squared_difference": lambda x, y: ops.square(x - y),
}
UNARY = {
    "math.abs": ops.abs,
    "math.negative": ops.negative,
    "math.exp": ops.exp,
    "math.log": ops.log,
    "math.log1p": ops.log1p,
    "math.sqrt": ops.sqrt,
    "math.rsqrt": ops.rsqrt,
    "math.square": ops.square,
    "math.sign": ops.sign,
    "math.sin": ops.sin,
    "math.cos": ops.cos,
    "math.erf": ops.erf,
    "math.floor": ops.floor,
    "math.ceil": ops.ceil,
    "math.round": ops.round,
    "math.reciprocal": ops.reciprocal,
    "math.logical_not": ops.logical_not,
    "math.sigmoid": ops.sigmoid,
    "math.tanh": ops.tanh,
    "math.softplus": ops.softplus,
    "nn.relu": ops.relu,
    "nn.relu6": ops.relu6,
    "nn.elu": ops.elu,
    "nn.selu": ops.selu,
    "nn.softsign": ops.softsign,
    "identity": lambda x: x,
    "stop_gradient": ops.stop_gradient,
    "zeros_like": ops.zeros_like,
    "ones_like": ops.ones_like,
    "keras.activations.hard_sigmoid": hard_sigmoid,
}
REDUCTIONS = {
    "reduce_mean": ops.mean,
    "reduce_sum": ops.sum,
    "reduce_max": ops.max,
    "reduce_min": ops.min,
    "reduce_prod": ops.prod,
    "reduce_std": ops.std,
    "reduce_variance": ops.var,
    "reduce_logsumexp": ops.logsumexp,
    "reduce_any": ops.any,
    "reduce_all": ops.all,
}
KERAS_BACKEND = ("abs", "exp", "log", "sqrt", "square", "sign", "sigmoid", "tanh", "softplus", "maximum", "minimum")
"""Functions of keras.backend that have the name and arguments of those of tf.math."""
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _binary(function) for name, function in BINARY.items()},
    **{name: _unary(function) for name, function in UNARY.items()},
    **{f"math.{name}": _reduction(function) for name, function in REDUCTIONS.items()},
    **{
        f"keras.backend.{name}": _reduction(getattr(ops, name))
        for name in ("mean", "sum", "max", "min", "prod", "std", "var")
    },
    **{
        f"keras.backend.{name}": (_binary if f"math.{name}" in BINARY else _unary)(getattr(ops, name))
        for name in KERAS_BACKEND
    },
    "math.add_n": _add_n,
    "clip_by_value": _clip,
    "nn.softmax": _softmax,
    "nn.leaky_relu": _leaky_relu,
    "nn.gelu": _gelu,
    "nn.silu": _silu,
    "math.l2_normalize": _l2_normalize,
    "linalg.matmul": _matmul,
    "linalg.l2_normalize": _l2_normalize,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "concat": _concat,
    "stack": _stack,
    "split": _split,
    "unstack": _unstack,
    "tile": _tile,
    "gather": _gather,
    "where": _where,
    "where_v2": _where,
    "einsum": _einsum,
    "pad": _pad,
    "cast": _cast,
    "__operators__.getitem": _getitem,
    "nn.bias_add": _bias_add,
    "nn.conv2d": _conv2d,
    "nn.max_pool2d": _pool(ops.max_pool),
    "nn.max_pool": _pool(ops.max_pool),
    "nn.avg_pool2d": _pool(ops.average_pool),
    "nn.avg_pool": _pool(ops.average_pool),
    "nn.depth_to_space": _depth_to_space,
    "nn.space_to_depth": _space_to_depth,
    "nn.depthwise_conv2d": _depthwise_conv2d,
    "nn.log_softmax": lambda logits, axis=-1: ops.log_softmax(logits, -1 if axis is None else axis),
    "nn.crelu": lambda features, axis=-1: ops.relu(ops.concatenate([features, -features], axis)),
    "math.argmax": lambda input, axis=0, output_type="int64": ops.argmax(input, axis),
    "math.cumsum": lambda x, axis=0: ops.cumsum(x, axis),
    "norm": _norm,
    "one_hot": _one_hot,
    "reverse": lambda tensor, axis: ops.flip(tensor, _axes(axis)),
    "roll": lambda input, shift, axis: ops.roll(input, shift, axis),
    "slice": _slice,
    "broadcast_to": lambda input, shape: ops.broadcast_to(input, tuple(shape)),
    "tensordot": lambda a, b, axes: ops.tensordot(*_alike(a, b), axes),
    "image.resize": _resize,
    "image.per_image_standardization": _image(
        lambda x: (
            (x - ops.mean(x, (-3, -2, -1), keepdims=True))
            / ops.maximum(ops.std(x, (-3, -2, -1), keepdims=True), float(np.prod(x.shape[-3:])) ** -0.5)
        )
    ),
    "image.rgb_to_grayscale": _image(
        lambda x: ops.tensordot(x, ops.array([0.2989, 0.5870, 0.1140], x.dtype), 1)[..., None]
    ),
    "image.grayscale_to_rgb": _image(lambda x: ops.repeat(x, 3, axis=-1)),
    "image.flip_left_right": _image(lambda x: ops.flip(x, -2)),
    "image.flip_up_down": _image(lambda x: ops.flip(x, -3)),
    "image.central_crop": _central_crop,
    "image.convert_image_dtype": _convert_image_dtype,
    "keras.backend.relu": _keras_relu,
    "keras.activations.relu": _keras_relu,
    "keras.backend.softmax": lambda x, axis=-1: ops.softmax(x, axis),
    "keras.backend.concatenate": _concatenate,
    "keras.backend.expand_dims": _expand_dims,
    "keras.backend.bias_add": _keras_bias_add,
    "keras.backend.l2_normalize": lambda x, axis=None: _l2_normalize(x, axis),
}
"""TensorFlow's functions by name, without `tf.`."""


def public_name(function: str) -> str:
    """Return TensorFlow's present name of a function: `compat.v1.transpose` is `transpose`."""
    name = function.removeprefix("tf.").removeprefix("compat.v1.").removeprefix("compat.v2.")
    return ALIASES.get(name, name)


ALIASES = {
    "floor_div": "math.floordiv",
    "linalg.norm": "norm",
    "argmax": "math.argmax",
    "manip.roll": "roll",
    "nn.swish": "nn.silu",
    "nn.sigmoid": "math.sigmoid",
    "nn.tanh": "math.tanh",
    "nn.softplus": "math.softplus",
    "nn.l2_normalize": "math.l2_normalize",
    "matmul": "linalg.matmul",
    "math.softmax": "nn.softmax",
    "image.resize_images": "image.resize",
    **{
        name: f"math.{name}"
        for name in ("add", "subtract", "multiply", "divide", "truediv", "abs", "exp", "pow", "sqrt")
    },
    **{
        name: f"math.{name}"
        for name in ("maximum", "minimum", "square", "tanh", "sigmoid", "negative", "add_n", *REDUCTIONS)
    },
}
