"""Classification by texts: a model of embeddings whose classes are texts, with the similarity as the score.

The score of a text is scale · cos(y, t) + bias, of the embedding y of the image and t of the text, as CLIP (softmax, no
bias) and SigLIP (sigmoid) compute it. The texts' embeddings are constants; only the image's part of the model runs.
"""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from xcam.contract import Activation, Array, Capability, Cotangents, InputSpec, Layer, Model, Names, Outputs, Trace
from xcam.contract.abilities import ChoosesOutput, ExplainsMissingLayers, Randomizable, supports
from xcam.contract.files import check_file
from xcam.contract.layouts import input_shape
from xcam.contract.outputs import like, one_output
from xcam.errors import InputError, ModelError, warn

EMBEDDINGS = ("image_embeds", "image_embeddings", "image_features", "embeddings", "embedding", "pooler_output")
"""Names of outputs that are an image's embedding, the likeliest first."""
RESERVED = ("embeddings", "texts", "scale", "bias")


@dataclass(frozen=True)
class TextHead:
    """The embeddings of texts, and how similarities become scores."""

    texts: tuple[str, ...]
    embeddings: Array
    """[K, D], of any length."""
    scale: float = 1.0
    bias: float | None = None
    """None: the scores of an image are a softmax's; a number: each is a sigmoid's."""

    def __post_init__(self) -> None:
        embeddings = np.asarray(self.embeddings)
        if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu" or not len(embeddings):
            raise InputError(
                f"cannot use embeddings of shape {list(embeddings.shape)} and type {embeddings.dtype}; give [texts, numbers]"
            )
        if len(self.texts) != len(embeddings):
            raise InputError(
                f"{len(embeddings)} embeddings for {len(self.texts)} texts; give one embedding for each text"
            )
        norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        if not np.isfinite(norms).all() or not norms.all():
            raise InputError("an embedding of a text is zero, NaN or infinite; compute the embeddings again")
        if not np.isfinite([self.scale, self.bias or 0.0]).all():
            raise InputError(f"cannot use scale={self.scale}, bias={self.bias}; give finite numbers")

    @property
    def units(self) -> Array:
        """The unit vectors [K, D]."""
        values = self.embeddings.astype(np.float64)
        return cast(Array, values / np.linalg.norm(values, axis=1, keepdims=True))


def checked_texts(texts: Any) -> tuple[str, ...]:
    """Return texts from a list, a file with one text on each line, or one string with `;` between them.

    Raises:
        InputError: There is none, one is empty, or two are equal.
    """
    if isinstance(texts, os.PathLike) or (
        isinstance(texts, str) and (texts.endswith(".txt") or os.path.isfile(texts))
    ):
        path = Path(texts)
        check_file(path, "a text file")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read texts from {path}: {error}; give a text file in UTF-8") from error
        listed: list[Any] = [line for line in lines if line]
    elif isinstance(texts, str):
        listed = [text.strip() for text in texts.split(";")]
        listed = listed[:-1] if len(listed) > 1 and not listed[-1] else listed
    else:
        listed = list(texts) if isinstance(texts, list | tuple | np.ndarray) else [None]
    if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
        raise InputError(
            f"cannot use texts={texts!r:.80}; give a list of texts, 'a dog;a cat', or a file with one on each line"
        )
    result = tuple(str(text) for text in listed)
    for text in result:
        if result.count(text) > 1:
            raise InputError(f"the text {text!r} is given twice; give each text once")
    return result


def read_embeddings(source: Any, texts: tuple[str, ...] | None) -> TextHead:
    """Return the embeddings of texts.

    Args:
        source: A .npz file or a mapping, with `embeddings` [K, D] and optionally `texts` [K], `scale`, `bias`, or with one
            array [D] by each text; a .npy file or an array [K, D].
        texts: The texts, where the caller gives them.

    Raises:
        InputError: The file cannot be read, or does not fit.
    """
    content = _content(source)
    if isinstance(content, Mapping):
        arrays = {str(name): np.asarray(value) for name, value in content.items()}
        if "embeddings" not in arrays:
            by_text = {name: value.ravel() for name, value in arrays.items() if name not in RESERVED}
            if len({value.size for value in by_text.values()}) != 1:
                raise InputError(
                    f"cannot use the arrays {', '.join(arrays) or 'none'} as embeddings of texts; give `embeddings` "
                    "[texts, numbers] and `texts`, or one array of equal length for each text"
                )
            stated: tuple[str, ...] | None = tuple(by_text)
            values = np.stack(list(by_text.values()))
        else:
            values = arrays["embeddings"]
            stated = tuple(str(text) for text in arrays["texts"].ravel()) if "texts" in arrays else None
        numbers = {name: _number(name, arrays[name]) for name in ("scale", "bias") if name in arrays}
    else:
        values, stated, numbers = np.asarray(content), None, {}
    names = texts or stated or tuple(f"text {k}" for k in range(len(values) if values.ndim else 0))
    return TextHead(names, values, numbers.get("scale", 1.0), numbers.get("bias"))


def _number(name: str, value: Array) -> float:
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise InputError(f"cannot use {name} of shape {list(value.shape)} and type {value.dtype}; give one number")
    return float(value.ravel()[0])


def _content(source: Any) -> Any:
    """Return the arrays of a file by name, or its only array; other values as they are. Raises InputError."""
    if not isinstance(source, str | os.PathLike):
        return source.detach().cpu().numpy() if hasattr(source, "detach") else source
    path = Path(source)
    check_file(path, "embeddings")
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else content
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"cannot read embeddings from {path}: {' '.join(str(error).split())}; write them with np.savez, texts as strings"
        ) from error


class TextClassifier:
    """A model of embeddings as a classifier of texts. See xcam.contract.Model."""

    def __init__(self, model: Model, head: TextHead) -> None:
        """Wrap `model`, whose first output is the embedding [N, D]."""
        self._model, self._head = model, head
        self.name, self.backend = model.name, model.backend
        self.labels: Sequence[str] | None = list(head.texts)
        self.capabilities: frozenset[Capability] = model.capabilities - {"hvp"}
        self.notes: Sequence[str] = tuple(model.notes)
        self.default_layer: str | None = getattr(model, "default_layer", None)

    def __copy__(self) -> TextClassifier:
        result = TextClassifier(copy.copy(self._model), self._head)
        result.__dict__ |= {name: value for name, value in vars(self).items() if name != "_model"}
        return result

    @property
    def input(self) -> InputSpec:
        """See xcam.contract.Model."""
        return self._model.input

    @input.setter
    def input(self, spec: InputSpec) -> None:
        self._model.input = spec

    @property
    def output_activation(self) -> Activation:
        """`softmax`, or `sigmoid` where the head has a bias."""
        return "softmax" if self._head.bias is None else "sigmoid"

    @property
    def layers(self) -> Sequence[Layer]:
        """See xcam.contract.Model."""
        return self._model.layers

    def predict(self, x: Array) -> Outputs:
        """Return the scores of the texts [N, K]."""
        return self._scores(self._model.predict(x))[0]

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """See xcam.contract.Model."""
        return self._model.activations(x, layers)

    def trace(self, x: Array, layer: Any, cotangents: Cotangents | None = None) -> Any:
        """See xcam.contract.Model."""
        return self._finished(self._model.trace(x, layer, self._of_embedding(cotangents)))

    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
        at: str | Names | None = None,
    ) -> Any:
        """See xcam.contract.Model."""
        resume: Callable[..., Any] = self._model.resume
        return self._finished(resume(trace, activations, rows, self._of_embedding(cotangents), at))

    def explain_missing_layer(self, name: str) -> str | None:
        """See xcam.contract.abilities.ExplainsMissingLayers."""
        return self._model.explain_missing_layer(name) if supports(self._model, ExplainsMissingLayers) else None

    def to_onnx(self, path: Path) -> None:
        """Refuse: the file would have embeddings as outputs. Raises ModelError."""
        raise ModelError(
            f"cannot export {self.name} with texts as classes; export it without texts, and open that file with their "
            "embeddings: embeddings= (--embeddings)"
        )

    @property
    def parameter_layers(self) -> Sequence[str]:
        """See xcam.contract.abilities.Randomizable."""
        return self._model.parameter_layers if supports(self._model, Randomizable) else []

    def with_shuffled_weights(self, parts: Sequence[str], seed: int = 0) -> TextClassifier:
        """See xcam.contract.abilities.Randomizable."""
        if not supports(self._model, Randomizable):
            raise ModelError(f"cannot shuffle weights of {self.name}: backend {self.backend!r} has no such copies")
        return TextClassifier(self._model.with_shuffled_weights(parts, seed), self._head)

    def _scores(self, outputs: Outputs) -> tuple[Array, Array, Array]:
        """Return the scores [N, K], the unit embeddings [N, D] and their norms [N, 1]."""
        y = one_output(outputs)
        flat = np.asarray(y, np.float64).reshape(len(y), -1)
        norms = np.linalg.norm(flat, axis=1, keepdims=True)
        units = flat / np.where(norms > 0, norms, 1.0)
        scores = self._head.scale * (units @ self._head.units.T) + (self._head.bias or 0.0)
        return scores.astype(np.float32), units, norms

    def _of_embedding(self, cotangents: Cotangents | None) -> Cotangents | None:
        """Return the cotangents of the embedding for those of the scores.

        ∂⟨v, s⟩/∂y = scale · (g − u⟨u, g⟩)/|y| with g = Σ v_k t_k, and u = y/|y|.
        """
        if cotangents is None:
            return None

        def pulled(outputs: Outputs) -> list[Outputs]:
            scores, units, norms = self._scores(outputs)
            y = one_output(outputs)
            result = []
            for v in cotangents(scores):
                g = self._head.scale * (np.asarray(v, np.float64) @ self._head.units)
                slope = (g - units * (units * g).sum(1, keepdims=True)) / np.where(norms > 0, norms, 1.0)
                result.append(like(outputs, slope.reshape(y.shape).astype(y.dtype), None))
            return result

        return pulled

    def _finished(self, traces: Any) -> Any:
        """Return traces with the scores as outputs."""
        if isinstance(traces, list):
            return [self._finished(trace) for trace in traces]
        return replace(traces, outputs=self._scores(traces.outputs)[0])


def with_texts(model: Model, head: TextHead, output: str | None = None) -> TextClassifier:
    """Return a model of embeddings as a classifier of texts.

    Args:
        model: The model; it is not changed.
        head: The texts.
        output: The name of the output that is the embedding, where the caller gives it.

    Raises:
        InputError: No output has the length of the texts' embeddings.
    """
    length = head.embeddings.shape[1]
    if head.scale == 1.0 and head.bias is None:
        warn(
            f"no scale is stated for the similarities of {model.name} to its texts: their probabilities are nearly equal; store "
            "the model's scale with the embeddings (CLIP's is 100)"
        )
    if output is None:
        outputs = model.predict(np.zeros((1, *input_shape(model.input)), model.input.dtype))
        named = dict(outputs) if isinstance(outputs, Mapping) else {"": outputs}
        sizes = {name: int(np.prod(np.shape(value)[1:])) for name, value in named.items()}
        fitting = [name for name, size in sizes.items() if size == length]
        if not fitting:
            listed = ", ".join(f"{name} {size}".strip() for name, size in sizes.items())
            raise InputError(
                f"cannot use texts with {model.name}: their embeddings have {length} numbers, and its outputs {listed}; give "
                "embeddings of the encoder that belongs to it"
            )
        output = next((name for name in EMBEDDINGS if name in fitting), fitting[0])
        if output == next(iter(named)):
            output = None
    if output is not None:
        if not supports(model, ChoosesOutput):
            raise InputError(
                f"cannot use the output {output!r} of {model.name}: its backend has no choice of outputs"
            )
        model = model.with_output(output)
    return TextClassifier(model, head)
