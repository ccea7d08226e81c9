"""The backend's entry point: read by xcam without importing JAX."""

from xcam import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    """Return the description of this backend."""
    return BackendSpec(
        name="jax",
        requires=("jax",),
        target="xcam_jax.backend:JaxBackend",
        model_types=("flax.nnx.module.Module", "xcam_jax.Function"),
    )
