"""What xcam may know of this backend without importing torch."""

from xcam.contract.plugins import BackendSpec, hookimpl


@hookimpl
def xcam_backend() -> BackendSpec:
    return BackendSpec(
        name="torch",
        requires=("torch",),
        target="xcam_torch.backend:TorchBackend",
        extra="torch",
        suffixes=(".pt2", ".pt", ".pth", ".safetensors"),
        model_types=("torch.nn.modules.module.Module", "torch.export.exported_program.ExportedProgram"),
        schemes=("torchvision", "timm", "hf"),
    )
