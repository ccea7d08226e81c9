"""`repair`: a quantised model with the fewest parts put back into float."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcam.comparison import inputs, own_error, precision
from xcam.comparison.correspondence import Correspondence
from xcam.comparison.data import ORDER, Verdict
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.images import Explainer
from xcam.comparison.mending import search
from xcam.comparison.mending.judge import Judge, Judgement
from xcam.comparison.mending.result import MendedPart, MendedRange, Repair
from xcam.comparison.own_error import Pair
from xcam.contract import Array, InputSpec, Model, validation
from xcam.contract.abilities import Mending, Mends, supports
from xcam.contract.layouts import full_size
from xcam.contract.preprocessing import Preprocessing
from xcam.contract.quantization import INPUT, Range
from xcam.errors import InputError, ModelError, XcamWarning, keywords_checked, warn
from xcam.explanation.requests import Aim
from xcam.explanation.settings import Settings
from xcam.explanation.settings import settings as checked_settings
from xcam.images import reading
from xcam.methods.maps import Normalize
from xcam.methods.registry import option_names
from xcam.models import layers
from xcam.models.load import load, with_output
from xcam.targets import Score

SAMPLES = 3
"""Images on which layers are aligned and parts are measured."""
RANGES = 8
"""The largest number of ranges that are mended: with more of them wrong, the calibration is."""
RANGE_CODES = ("narrow-range", "wide-range", "wrong-scale", "wrong-zero-point")
MARGINS = (0.5, 0.2, 0.05)
"""The shares of the allowed loss that further searches use, where the first does not hold on other images."""
FAR = 2.0
"""A range is far too wide or too narrow by this factor. Where several are, the calibration saw other images."""
OTHER = 0.5
"""Local errors of most parts above this are hardly those of the number of bits: 4-bit weights have 0.1 to 0.3."""
RUNS = 15
"""Runs whose median is the time for one image."""


@keywords_checked(option_names)
def repair(
    reference: Any,
    quantised: Any,
    image: Any,
    *,
    check: Any = None,
    require: Verdict = "equivalent",
    layer: str | None = None,
    target: Aim = None,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    score: Score = "logit",
    normalize: Normalize = "max",
    augment: bool = False,
    preprocess: str | Preprocessing | None = None,
    output: str | None = None,
) -> Repair:
    """Put the fewest parts of a quantised model back into float, so that it explains images as the float model does.

    A part is the nodes between two values that both files have. Where the range of a single value is wrong, the range is mended
    instead, and nothing is put back into float for it.

    Args:
        reference: The float model: an ONNX file, or the result of `load`.
        quantised: The ONNX file that was made from it.
        image: A path or an RGB uint8 array [H, W, 3], or a list of these.
        check: Images that are not used for the choice, and prove it; default: a third of the images.
        require: The verdict of `compare` to reach: `equivalent` or `identical`.
        layer: The layer of the float model to explain; default: as for `compare`.
        target: As for `compare`; default: the float model's top class.
        method: A name from `xcam.list_methods()`.
        method_options: The method's own options, by name.
        score: As for `explain`.
        normalize: As for `explain`.
        augment: As for `explain`.
        preprocess: As for `compare`.
        output: The name of the output that is explained, for models with several.

    Raises:
        InputError: A model, image, layer, target or option cannot be used.
        ModelError: The models do not correspond, or cannot be mended.
        BackendError: A backend, or a package that the measures need, is missing.
    """
    if require not in ORDER[:2]:
        raise InputError(f"cannot require {require!r}; give {' or '.join(map(repr, ORDER[:2]))}")
    settings = checked_settings(method, method_options, score, normalize, augment)
    models = _opened(reference, quantised, output)
    failed: list[tuple[str, str]] = []
    chosen, others = _images(image, check, failed)
    specs = inputs.common_inputs(models, preprocess)
    return _Repairer(models, specs, chosen, others, require, layer, target, settings, output).run(tuple(failed))


def _opened(reference: Any, quantised: Any, output: str | None) -> tuple[Model, Model]:
    """Open both models, and check that the first is in float and the second can be mended. Raises InputError."""
    models = [model if validation.is_model(model) else load(model) for model in (reference, quantised)]
    if output is not None:
        models = [with_output(model, output) for model in models]
    first, second = models
    if not supports(second, Mends):
        raise InputError(
            f"cannot repair {second.name} ({second.backend}): only ONNX files can be repaired; export it to ONNX, and quantise "
            "that file"
        )
    kinds = [own_error.precision(model) for model in models]
    if kinds[0] is not None and kinds[1] is None:
        raise InputError(
            f"cannot repair {second.name}: it is in float, and {first.name} is in {kinds[0]}; give the float model first"
        )
    if kinds[0] is not None:
        raise InputError(f"cannot repair with {first.name}: it is in {kinds[0]}; give the float model first")
    if kinds[1] is None:
        raise InputError(f"cannot repair {second.name}: it has no quantised layers; give the quantised model second")
    if kinds[1] in ("float16", "bfloat16"):
        raise InputError(
            f"cannot repair {second.name}: it is in {kinds[1]}, and only quantised layers can be put back into float; use the float "
            "model, or convert it again with the layers that `xcam blame` names kept in float32"
        )
    if not supports(first, Mends):
        raise InputError(
            f"cannot repair with {first.name} ({first.backend}): its weights are needed as ONNX nodes; give the float ONNX file "
            f"that {second.name} was made from"
        )
    return first, second


def _images(image: Any, check: Any, failed: list[tuple[str, str]]) -> tuple[list[reading.Image], list[reading.Image]]:
    """Return the images of the choice, and those that prove it: by default every third."""

    def read(source: Any) -> list[reading.Image]:
        sources = list(source) if isinstance(source, list | tuple) else [source]
        return [array for _, array in inputs.read_images(sources, failed)]

    chosen = read(image)
    if not chosen:
        reason = failed[0][1] if failed else "the list is empty; give one or more"
        raise InputError(f"no image can be used: {reason}")
    if check is not None:
        others = read(check)
        if not others:
            raise InputError(
                f"no image to check with can be used: {failed[-1][1] if failed else 'the list is empty; give one or more'}"
            )
        return chosen, others
    at = {k for k in range(len(chosen)) if k % 3 == 2} or ({1} if len(chosen) > 1 else set())
    return [chosen[k] for k in range(len(chosen)) if k not in at], [chosen[k] for k in sorted(at)]


@dataclass
class _State:
    """Mended parts and ranges."""

    parts: list[str] = field(default_factory=list)
    ranges: dict[str, MendedRange] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Range]:
        return {name: (r.low, r.high) for name, r in self.ranges.items()}


_SearchResult = tuple[_State, dict[str, search.Measured], int | None]
"""Mended parts and ranges, all parts as they were measured, and the number by the largest local errors."""


class _Repairer:
    def __init__(
        self,
        models: tuple[Model, Model],
        specs: Sequence[InputSpec],
        chosen: Sequence[reading.Image],
        others: Sequence[reading.Image],
        require: Verdict,
        layer: str | None,
        target: Aim,
        settings: Settings,
        output: str | None,
    ) -> None:
        self.models, self.specs, self.require, self.output = models, specs, require, output
        self.sample = chosen[:SAMPLES]
        names: list[str | None] = [None if layer is None else layers.find(models[0], layer).name, None]
        self.correspondence = Correspondence(models, specs, self.sample)
        missing = self.correspondence.fill_in(names)
        if missing:
            raise InputError(
                f"cannot repair {models[1].name}: {missing[0].partition(';')[0]}; "
                "give the float file that it was made from, or explain another layer"
            )
        self.layer, self.second = str(names[0]), str(names[1])
        explainer = Explainer(models[0], specs[0], self.layer)
        self.judge = Judge(explainer, chosen, target, settings)
        self.proof = Judge(explainer, others, target, settings) if others else None
        self.tried: dict[frozenset[str], bool] = {}
        self.measured: dict[tuple[str, ...], dict[str, search.Measured]] = {}
        self.margin = 1.0
        self._mending: Mending | None = None

    @property
    def mending(self) -> Mending:
        """The parts that can be put back."""
        if self._mending is None:
            model = self.models[1]
            assert supports(model, Mends)
            first, second = self.correspondence.samples
            pairs = [(self.layer, self.second)]
            for m in self.correspondence.matches[1]:
                if m.order is None:
                    pairs += [(first[i].layer.name, second[j].layer.name) for i in m.firsts for j in m.seconds]
            self._mending = model.mending(self.models[0], pairs)
        return self._mending

    def run(self, failed: tuple[tuple[str, str], ...]) -> Repair:
        """Search, and return the result."""
        second = Explainer(self.models[1], self.specs[1], self.second)
        before = self.judge(second)
        check_before = self.proof(second) if self.proof else None
        result = Repair(
            (self.models[0].name, self.models[1].name),
            (self.layer, self.second),
            self.require,
            before,
            before,
            check_before,
            check_before,
            failed=failed,
        )
        if result.reached:
            return result
        search_result = self._searched(before)
        for margin in MARGINS:
            if not self.proof or self._is_proven(search_result):
                break
            self.margin = margin
            stricter = self._searched(before)
            search_result = stricter if self._is_proven(stricter) else search_result
        state, measured, naive = search_result
        parts = [part.name for part in self.mending.parts]
        model, explainer = self._built(state, quick=False)
        mending = self.mending
        known = {part.name: part for part in mending.parts}
        return Repair(
            result.names,
            result.layers,
            self.require,
            before,
            self.judge(explainer),
            check_before,
            self.proof(explainer) if self.proof else None,
            tuple(state.ranges.values()),
            tuple(MendedPart(known[name], measured[name].harm, measured[name].local_error) for name in state.parts),
            len(parts),
            tuple(mending.nodes(state.parts)),
            naive,
            (mending.size([], {}), mending.size(state.parts, state.values)),
            self._times(model),
            failed,
            model,
            mending,
        )

    def _searched(self, before: Judgement) -> _SearchResult:
        """Search for the fewest parts: see xcam.comparison.mending.search."""
        state = _State()
        self._mend_ranges(state, before)
        measured: dict[str, search.Measured] = {}
        naive: int | None = None
        if not self._reaches(state, []):
            parts = [part.name for part in self.mending.parts]
            measured = self._measured(state)
            typical = statistics.median(m.local_error for m in measured.values())
            if typical > OTHER:
                warn(
                    f"most parts of {self.models[1].name} have errors as large as their values ({typical:.2g}): check that it was "
                    f"made from {self.models[0].name}, and its calibration"
                )
            order = sorted(parts, key=lambda name: -measured[name].harm)
            count = search.shortest(order, lambda names: self._reaches(state, names))
            if count is None:
                state.parts = order
            else:
                state.parts = search.reduced(order[:count], lambda names: self._reaches(state, names))
                by_error = sorted(parts, key=lambda name: -measured[name].local_error)
                plain = _State()
                naive = search.shortest(by_error, lambda names: self._reaches(plain, names))
        for name in list(state.ranges):  # those that turn out to be unnecessary
            rest = _State(state.parts, {k: r for k, r in state.ranges.items() if k != name})
            if self._reaches(state, state.parts) and self._reaches(rest, rest.parts):
                state.ranges = rest.ranges
        return state, measured, naive

    def _measured(self, state: _State) -> dict[str, search.Measured]:
        key = tuple(state.ranges)
        if key not in self.measured:
            results = search.measured(self.mending, self.models[0], self._batches(), self.layer, state.values)
            self.measured[key] = {m.part.name: m for m in results}
        return self.measured[key]

    def _is_proven(self, search_result: _SearchResult) -> bool:
        assert self.proof is not None
        return self.proof(self._built(search_result[0])[1], self.require).reaches(self.require)

    def _batches(self) -> tuple[Array, Array]:
        first, second = self.correspondence.models
        return first.x, second.x

    def _built(
        self, state: _State, parts: Collection[str] | None = None, quick: bool = True
    ) -> tuple[Model, Explainer]:
        chosen = state.parts if parts is None else list(parts)
        model, names = self.mending.mended(chosen, state.values, [self.layer], quick)
        if self.output is not None:
            model = with_output(model, self.output)
        name = names[self.layer]
        if name is None:
            raise ModelError(
                f"cannot repair {self.models[1].name}: no value of it corresponds to {self.layer!r} of {self.models[0].name}; "
                "explain another layer"
            )
        return model, Explainer(model, self.specs[1], name)

    def _reaches(self, state: _State, parts: Collection[str]) -> bool:
        key = frozenset([*parts, *(f"range of {name}" for name in state.ranges), f"margin {self.margin}"])
        if key not in self.tried:
            judgement = self.judge(self._built(state, parts)[1], self.require, self.margin)
            self.tried[key] = judgement.reaches(self.require, self.margin)
        return self.tried[key]

    def _times(self, model: Model) -> tuple[float, float, float]:
        xs = *self._batches(), self._batches()[1]
        results = []
        for each, x in zip((*self.models, model), xs, strict=True):
            each.predict(x[:1])
            seconds = []
            for _ in range(RUNS):
                start = time.perf_counter()
                each.predict(x[:1])
                seconds.append(time.perf_counter() - start)
            results.append(statistics.median(seconds))
        return results[0], results[1], results[2]

    # Ranges

    def _mend_ranges(self, state: _State, before: Judgement) -> None:
        """Mend the ranges that are wrong at single values, one after the other, as long as that helps; else all wrong ones."""
        judgement, model = before, self.models[1]
        for _ in range(RANGES):
            fault = self._fault(model)
            if fault is None or fault.layer in state.ranges or not self.mending.has_range(fault.layer):
                break
            now, tried = self._with_ranges({**state.ranges, fault.layer: fault})
            if now is None or tried is None or now.key >= judgement.key:
                break
            state.ranges, judgement, model = tried.ranges, now, self._built(tried, quick=False)[0]
            if judgement.reaches(self.require, self.margin):
                return
        faults = self._far_ranges()
        if len(faults) < 2:
            return
        several = {fault.layer: fault for fault in faults}
        if self.mending.has_range(INPUT):
            several[INPUT] = self._input_fault(faults[0].cause)
        now, tried = self._with_ranges(several)
        if now is not None and tried is not None and now.key < judgement.key:
            state.ranges = tried.ranges

    def _with_ranges(self, ranges: dict[str, MendedRange]) -> tuple[Judgement | None, _State | None]:
        """Return the judgement with these ranges; None where one cannot be changed."""
        tried = _State(ranges=ranges)
        try:
            return self.judge(self._built(tried)[1]), tried
        except ModelError:
            return None, None

    def _fault(self, model: Model) -> MendedRange | None:
        """Return the wrong range that stands out, with the right one; None where none does."""
        compared = self.correspondence
        if model is not self.models[1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", XcamWarning)
                compared = Correspondence((self.models[0], model), self.specs, self.sample)
        a, b = compared.samples
        matches = compared.matches[1]
        first, second = compared.models
        examined = precision.examine((first, second), (a, b), matches, [])
        if examined is None or examined.index is None or examined.cause is None:
            return None
        if examined.cause.code not in RANGE_CODES:
            return None
        match = matches[examined.index]
        return self._right(a[match.first].layer.name, b[match.second].layer.name, examined.cause)

    def _far_ranges(self) -> list[MendedRange]:
        """Return all ranges of the quantised model that are far too wide or too narrow, with the right ones."""
        first, second = self.correspondence.models
        pairs = [Pair(*names) for names in self.mending.pairs if self.mending.has_range(names[0])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", XcamWarning)
            errors = own_error.own_errors(first, second, pairs)
        results = []
        for pair, error in zip(pairs, errors, strict=True):
            if error.reach is not None and not 1 / FAR < error.reach < FAR:
                code = "wide-range" if error.reach < 1 else "narrow-range"
                text = f"the values reach {error.reach:.2g} times as far as the range"
                results.append(self._right(pair.reference, pair.reduced, Diagnosis(code, text)))
        return results

    def _right(self, name: str, other: str, cause: Diagnosis) -> MendedRange:
        """Return the range of a value in the float model."""
        values = validation.activations(self.models[0], self.correspondence.models[0].x, [name])[name]
        return MendedRange(name, other, float(values.min()), float(values.max()), cause)

    def _input_fault(self, cause: Diagnosis) -> MendedRange:
        """Return the range of all images for the input."""
        height, width = full_size(self.specs[1].size)[-2:]
        ends = [np.full((height, width, 3), value, np.uint8) for value in (0, 255)]
        x = inputs.batch(self.specs[1], ends)
        return MendedRange(INPUT, INPUT, float(x.min()), float(x.max()), Diagnosis(cause.code, "as the other ranges"))
