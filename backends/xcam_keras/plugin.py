"""What xcam may know of this backend without importing Keras."""

from xcam.plugins import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    return BackendSpec(
        name="keras",
        requires=("keras", "tensorflow"),
        target="xcam_keras.backend:KerasBackend",
        extra="keras",
        suffixes=(".keras", ".h5", ".hdf5"),
        model_types=("keras.src.models.model.Model",),
        zoo=True,
        default_model="vgg16",
    )
