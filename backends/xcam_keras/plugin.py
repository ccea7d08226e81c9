"""The plugin entry point of this backend. It does not import Keras."""

from xcam.contract.plugins import BackendSpec, hookimpl
from xcam_keras import engine


@hookimpl
def xcam_backend() -> BackendSpec:
    """Describe the Keras backend."""
    return BackendSpec(
        name="keras",
        requires=engine.requires(),
        remedy=engine.remedy(),
        target="xcam_keras.backend:KerasBackend",
        extra="keras",
        suffixes=(".keras", ".h5", ".hdf5"),
        folders=("saved_model.pb",),
        model_types=("keras.src.models.model.Model", "tf_keras.src.engine.training.Model"),
        zoo=True,
        default_model="vgg16",
        callbacks=("xcam_keras.callbacks:KerasHeatmaps",),
    )
