"""The backend's entry point, which does not import OpenVINO."""

from xcam.contract.plugins import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    """Describe the backend."""
    return BackendSpec(
        name="openvino",
        requires=("openvino",),
        target="xcam_openvino.backend:OpenVinoBackend",
        extra="openvino",
        suffixes=(".xml",),
        model_types=(
            "openvino._ov_api.Model",
            "openvino._pyopenvino.Model",
            "openvino._ov_api.CompiledModel",
            "openvino._pyopenvino.CompiledModel",
        ),
    )
