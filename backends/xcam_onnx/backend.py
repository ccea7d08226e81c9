"""From a file or a live object to an ONNX model behind the contract."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from onnx import ModelProto

from xcam import demo as network
from xcam.contract import Layout
from xcam.errors import InputError
from xcam_onnx import demo, files
from xcam_onnx.model import OnnxModel
from xcam_onnx.reading import facts
from xcam_onnx.sessions import Runtime, providers

QUANTISED = "quantised: gradients pass straight through the rounding"


class OnnxBackend:
    """ONNX Runtime."""

    def load(
        self,
        source: Any,
        *,
        size: tuple[int, int] | None = None,
        device: str | None = None,
        layout: Layout | None = None,
        weights: str | None = None,
        threads: int | None = None,
    ) -> OnnxModel:
        """An `.onnx` file, `demo`, or a live onnx.ModelProto. `threads`: ONNX Runtime's intra_op_num_threads."""
        if weights is not None:
            raise InputError("an ONNX file brings its own weights; leave weights out")
        if layout == "tokens":
            raise InputError("an ONNX file says itself which of its values are tokens; leave layout out")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; give 1 or more, or leave it out")
        where = providers(device)
        if isinstance(source, Path):
            name, path = source.name.removesuffix(".onnx"), source
            proto, temporary = files.read(source), None
        else:
            proto, name = (demo.build(), "demo") if source == "demo" else (source, "")
            name = name or (proto.graph.name if isinstance(proto, ModelProto) else "") or "model"
            proto, path, temporary = files.kept(proto)
        told = files.metadata(proto)
        if source == "demo":
            made = network.network()
            told = {"labels": made.labels, "preprocessing": made.preprocessing}
        notes = [QUANTISED] if any(node.op_type == "QuantizeLinear" for node in proto.graph.node) else []
        model = OnnxModel(
            Runtime(path.parent.resolve(), where, threads),
            name=name,
            facts=facts(proto, name, layout, size),
            notes=notes,
            check=files.unchanged(path, proto),
            **told,
        )
        if temporary is not None:
            weakref.finalize(model, temporary.cleanup)
        return model
