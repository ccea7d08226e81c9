"""Load an OpenVINO model from a file or a live object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino

from xcam.contract import Layout
from xcam.contract.messages import own_weights
from xcam.errors import InputError
from xcam.models import demo as demo_network
from xcam_openvino import demo, files, statements
from xcam_openvino.graph import Graph
from xcam_openvino.model import OpenVinoModel
from xcam_openvino.sessions import runtime


class OpenVinoBackend:
    """OpenVINO. See xcam.contract.Backend."""

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
    ) -> OpenVinoModel:
        """Load a model.

        Args:
            source: The path of an `.xml` or `.onnx` file, `demo`, or an openvino.Model.
            size: The size of the input where the model leaves it open.
            device: A name of OpenVINO's own: `CPU` (the default), `GPU`, `AUTO`.
            layout: The layout of the input; None: read it from the graph.
            weights: Not used: the model contains its weights.
            threads: The number of threads of the CPU; None: OpenVINO's choice.
            channels: The number of channels of the input, where the model does not state it.

        Raises:
            InputError: An option does not apply.
            ModelError: The file cannot be read or used.
        """
        if weights is not None:
            raise own_weights("an OpenVINO model", weights)
        if layout == "tokens":
            raise InputError("cannot use layout='tokens': the graph shows which values are tokens; leave layout out")
        chosen = runtime(device, threads)
        options: dict[str, Any] = {"size": size}
        if isinstance(source, Path):
            name, model = source.stem, files.read(source)
        else:
            if source == "demo":
                network = demo_network.network()
                source = demo.build()
                options |= {"labels": network.labels, "preprocessing": network.preprocessing}
            if isinstance(source, openvino.CompiledModel):
                raise InputError(
                    "cannot open a CompiledModel: it has the runtime's own graph, which cannot be cut at a layer; give the "
                    "openvino.Model that it was compiled from, or its .xml file"
                )
            if not isinstance(source, openvino.Model):
                raise InputError(
                    f"unknown model {source!r:.100} for OpenVINO; give an .xml or .onnx file, demo or an openvino.Model"
                )
            name, model = source.get_friendly_name() or "model", source
        options = {**statements.stated(Graph(model)), **options} if model.inputs else options
        return OpenVinoModel(model, chosen, name=name, layout=layout, channels=channels, **options)
