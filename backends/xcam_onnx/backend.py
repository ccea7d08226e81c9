"""From a file or a live object to an ONNX model behind the contract."""

from __future__ import annotations

import contextlib
import weakref
from pathlib import Path
from typing import Any

from onnx import ModelProto

from xcam.contract import Layout
from xcam.errors import InputError
from xcam.models import demo as network
from xcam_onnx import demo, files
from xcam_onnx.model import OnnxModel
from xcam_onnx.reading import facts
from xcam_onnx.sessions import Runtime, providers
from xcam_onnx.weights import Pages

QUANTISED = "quantised: gradients pass straight through the rounding"
MOST_THREADS = 1024


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
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
            raise InputError(f"threads is {threads!r}; give a whole number from 1 to {MOST_THREADS}, or leave it out")
        where = providers(device)
        with contextlib.ExitStack() as rollback:
            if isinstance(source, Path):
                name, path = source.name.removesuffix(".onnx"), files.real(source)
                proto = files.read(path)
            else:
                live = demo.build() if source == "demo" else source
                if not isinstance(live, ModelProto):
                    raise InputError(
                        f"ONNX Runtime has no model {source!r:.100}; give an .onnx file, demo or a ModelProto"
                    )
                name = live.graph.name or "model"
                proto, path, temporary = files.kept(live)
                rollback.callback(temporary.cleanup)
            told = files.metadata(proto)
            if source == "demo":
                made = network.network()
                told = {"labels": made.labels, "preprocessing": made.preprocessing}
            notes = [QUANTISED] if any(node.op_type == "QuantizeLinear" for node in proto.graph.node) else []
            model = OnnxModel(
                Runtime(Pages(path.parent.resolve()), where, threads),
                name=name,
                facts=facts(proto, name, layout, size),
                notes=notes,
                check=files.unchanged(path, proto),
                **told,
            )
            weakref.finalize(model, rollback.pop_all().close)
        return model
