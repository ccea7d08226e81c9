"""The backend's entry point: read by xcam without importing its framework."""

from xcam import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    """Return the description of this backend."""
    return BackendSpec(
        name="numpy",
        requires=("numpy",),
        target="xcam_numpy.backend:NumpyBackend",
        model_types=("xcam_numpy.graph.Graph",),
    )
