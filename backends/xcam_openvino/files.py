"""Reading models from files and live objects; errors in one line."""

from __future__ import annotations

import re
from pathlib import Path

import openvino

from xcam.contract.messages import one_line
from xcam.errors import ModelError
from xcam_openvino.sessions import core

CONSTANT = b'type="Const"'


def read(path: Path) -> openvino.Model:
    """Read an `.xml` file, its weights next to it, or an `.onnx` file. Raises ModelError."""
    if path.suffix.lower() == ".xml":
        _check_xml(path)
    try:
        return core().read_model(path)
    except Exception as error:
        raise _failure(path.name, error) from error


def _check_xml(path: Path) -> None:
    """Check that a file is an OpenVINO model, and that its weights exist. Raises ModelError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    if b"<net" not in content[:4096]:
        raise ModelError(
            f"cannot read {path.name}: it is not an OpenVINO model (it has no element <net>); give the .xml file that "
            "openvino.save_model writes"
        )
    if not content.rstrip().endswith(b"</net>"):
        raise ModelError(f"cannot read {path.name}: it ends before </net>; copy or convert it again")
    weights = path.with_suffix(".bin")
    if CONSTANT in content and not weights.is_file():
        raise ModelError(
            f"cannot read {path.name}: its weights, {weights.name}, are not next to it; copy both files to one folder"
        )


def _failure(name: str, error: Exception) -> ModelError:
    """Return the error for a file that OpenVINO does not read."""
    lines = [line.strip() for line in str(error).splitlines()]
    cause = " ".join(
        line for line in lines if line and not line.startswith(("Exception from", "Check '", "Summary:"))
    )
    version = openvino.__version__.partition("-")[0]
    if re.search(r"No conversion rule|doesn't contain the operation|unsupported opset", cause):
        return ModelError(
            f"cannot read {name}: OpenVINO {version} lacks an operator: {one_line(Exception(cause))}; install a later "
            "version, or convert the model without the operator"
        )
    return ModelError(
        f"cannot read {name}: {one_line(Exception(cause or error))}; copy the file again, or convert the model again with "
        "openvino.save_model"
    )
