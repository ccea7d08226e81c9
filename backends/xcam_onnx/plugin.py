"""The backend's entry point, which imports neither ONNX nor its runtime."""

from xcam.contract.plugins import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    """Describe the backend."""
    return BackendSpec(
        name="onnx",
        requires=("onnx", "onnxruntime"),
        target="xcam_onnx.backend:OnnxBackend",
        extra="onnx",
        suffixes=(".onnx",),
        model_types=("onnx.onnx_ml_pb2.ModelProto",),
    )
