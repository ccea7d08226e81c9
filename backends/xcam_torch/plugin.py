"""The backend's entry point: read by xcam without importing torch."""

from xcam.contract.plugins import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    """Return the description of this backend."""
    return BackendSpec(
        name="torch",
        requires=("torch",),
        target="xcam_torch.backend:TorchBackend",
        extra="torch",
        suffixes=(".pt2", ".pt", ".pth", ".th", ".ckpt", ".safetensors"),
        model_types=("torch.nn.modules.module.Module", "torch.export.exported_program.ExportedProgram"),
        schemes=("torchvision", "timm", "hf"),
        callbacks=("xcam_torch.callbacks:LightningHeatmaps",),
    )
