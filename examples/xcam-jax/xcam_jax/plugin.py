"""What xcam may know of this backend without importing JAX."""

from xcam import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    return BackendSpec(
        name="jax",
        requires=("jax",),
        target="xcam_jax.backend:JaxBackend",
        model_types=("flax.nnx.module.Module", "xcam_jax.Function"),
    )
