"""Load an ONNX model from a file or a live object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import ModelProto

from xcam.contract import Layout
from xcam.contract.fixed import FixedInputs, note
from xcam.contract.messages import own_weights
from xcam.contract.plugins import DEMOS
from xcam.errors import InputError
from xcam.models import demo as demo_network
from xcam_onnx import demo, files, statements
from xcam_onnx.checks import check
from xcam_onnx.inputs import with_fixed
from xcam_onnx.model import OnnxModel
from xcam_onnx.sessions import Runtime, providers

MAX_THREADS = 1024


class OnnxBackend:
    """ONNX Runtime. See xcam.contract.Backend."""

    def load(
        self,
        source: Any,
        *,
        size: tuple[int | None, int | None] | None = None,
        device: str | None = None,
        layout: Layout | None = None,
        weights: str | None = None,
        threads: int | None = None,
        channels: int | None = None,
        inputs: FixedInputs | None = None,
    ) -> OnnxModel:
        """Load a model.

        Args:
            source: The path of an `.onnx` file, `demo`, or an onnx.ModelProto.
            size: The size of the input where the model leaves it open.
            device: See xcam_onnx.sessions.providers.
            layout: The layout of the input; None: read it from the graph.
            weights: Not used: an ONNX file contains its weights.
            threads: ONNX Runtime's intra_op_num_threads; None: the number of cores.
            channels: The number of channels of the input, where the file does not state it; 0: it has no channel axis.
            inputs: The values of the other inputs.

        Raises:
            InputError: An option does not apply.
            ModelError: The file cannot be read or used.
        """
        if weights is not None:
            raise own_weights("an ONNX file", weights)
        if layout == "tokens":
            raise InputError(
                "cannot use layout='tokens': an ONNX graph shows which values are tokens; leave layout out"
            )
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
            raise InputError(
                f"cannot use threads={threads!r}: give an integer from 1 to {MAX_THREADS}, or leave it out"
            )
        execution_providers = providers(device)
        options: dict[str, Any] = {}
        if isinstance(source, Path):
            name = source.name.removesuffix(".onnx")
            opened = files.read(source)
        else:
            if source in DEMOS:
                network = demo_network.network()
                source = demo.build() if source == "demo" else demo.detector()
                options = {"labels": network.labels, "preprocessing": network.preprocessing}
            if not isinstance(source, ModelProto):
                raise InputError(
                    f"unknown model {source!r:.100} for ONNX Runtime; give an .onnx file, demo or a ModelProto"
                )
            name = source.graph.name or "model"
            opened = files.store(source)
        graph = opened.graph
        stated = statements.of_folder(source, graph) if isinstance(source, Path) else {}
        options = {"size": size} | stated | statements.stated(graph) | files.description(graph.model) | options
        runtime = Runtime(opened.weights, execution_providers, threads)
        check(graph, source.name if isinstance(source, Path) else name, runtime)
        inputs = inputs or FixedInputs()
        graph = with_fixed(graph, name, inputs, runtime, options["size"])
        notes = (*opened.notes, *note(inputs.values))
        return OnnxModel(
            graph,
            runtime,
            name=name,
            layout=layout,
            channels=channels,
            notes=notes,
            fixed=[*inputs.values],
            **options,
        )
