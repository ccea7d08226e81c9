"""What xcam may know of this backend without importing its framework."""

from xcam import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    return BackendSpec(
        name="numpy",
        requires=("numpy",),
        target="xcam_numpy.backend:NumpyBackend",
        model_types=("xcam_numpy.graph.Graph",),
    )
