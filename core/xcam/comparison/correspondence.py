"""The layers of several models, aligned with those of the first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from xcam import progress
from xcam.comparison import alignment, divergence, own_error, precision
from xcam.comparison.alignment import LayerSample, Match
from xcam.comparison.data import Divergence, LayerPair, Step
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.inputs import batch
from xcam.comparison.stretch import ComparedModel
from xcam.contract import Array, InputSpec, Model, one_output
from xcam.errors import InputError
from xcam.images import reading
from xcam.models import layers


class Correspondence:
    """The layers of each model after the first that correspond to layers of the first."""

    def __init__(self, models: Sequence[Model], specs: Sequence[InputSpec], images: Sequence[reading.Image]) -> None:
        self.models = [
            ComparedModel(model, spec, batch(spec, images)) for model, spec in zip(models, specs, strict=True)
        ]
        self.positions = alignment.positions(models, len(images))
        inner = alignment.inner_integers(models)
        self.samples: list[list[LayerSample]] = [
            alignment.samples(each.model, each.x, self.positions, inner)
            for each in progress.steps(self.models, "models' layers")
        ]
        is_reduced = [own_error.precision(model) is not None for model in models]
        self.matches: dict[int, list[Match]] = {
            k: alignment.align(self.samples[0], self.samples[k], 1 if is_reduced[k] else 0 if is_reduced[0] else None)
            for k in range(1, len(models))
        }
        """The matches of each model after the first."""

    def add_outputs(self, logits: Sequence[Array] | None = None) -> None:
        """Add the last output of each model, by its logits [N, …]; where none are given, the models are run."""
        for k, each in enumerate(self.models):
            values = one_output(each.model.predict(each.x)) if logits is None else logits[k]
            output = alignment.output_sample(each.model, values)
            self.samples[k] += [output] if output else []
        first = self.samples[0]
        for k, matches in self.matches.items():
            second = self.samples[k]
            both = first[-1].layer.is_output and second[-1].layer.is_output
            if both and first[-1].values.shape == second[-1].values.shape:
                last = alignment.match(first, second, len(first) - 1, len(second) - 1)
                matches.append(replace(last, firsts=(last.first,), seconds=(last.second,)))

    def pairs(self, k: int = 1) -> list[LayerPair]:
        """Return the values that the first model and model `k` have, each once, in the first model's execution order."""
        return [self._pair(k, match) for match in self.matches[k]]

    def _pair(self, k: int, match: Match) -> LayerPair:
        first, second = (
            alignment.names(self.samples[which], indices)
            for which, indices in ((0, match.firsts), (k, match.seconds))
        )
        shared = next((name for name in first if name in second), None)
        return LayerPair(shared or first[0], shared or second[0], match.error, first, second)

    def fill_in(self, names: list[str | None]) -> list[str]:
        """Fill in the missing names of explained layers by the counterparts of those that are given.

        Where no name is given, that is the default of the first model, or the nearest earlier layer with counterparts.
        Returns notes on models without a counterpart.
        """
        findings = []
        if all(name is None for name in names):
            names[0] = self._last_common(layers.find(self.models[0].model, None).name)
        named = next(k for k, name in enumerate(names) if name is not None)
        for k in sorted(range(len(names)), key=lambda k: k != 0):  # the others correspond to the first
            if names[k] is None:
                source = named if k == 0 else 0
                name = str(names[source])
                names[k] = self._counterpart(k, source, name) or self._by_value(k, source, name)
            if names[k] is None:
                model = self.models[k].model
                another = self._another(k, source, name)
                findings.append(
                    f"no layer of {model.name} corresponds to {name!r} in shape and values; its default layer is "
                    f"explained{another and f' ({another!r} is the next layer that both have)'}"
                )
                names[k] = layers.find(model, None).name
        return findings

    def _counterpart(self, k: int, source: int, name: str) -> str | None:
        """Return the layer of model `k` with the value of a layer of model `source`, one of which is the first model.

        Of several, the one with the same name or kind, else the first that can be explained.
        """
        for m in self.matches[k or source]:
            theirs, ours = (m.firsts, m.seconds) if k else (m.seconds, m.firsts)
            layers_there = [self.samples[source][i].layer for i in theirs]
            layer = next((layer for layer in layers_there if name in (layer.name, *layer.aliases)), None)
            if layer is not None:
                candidates = [self.samples[k][i].layer for i in ours]
                candidates.sort(
                    key=lambda other: (other.name != layer.name, other.kind.lower() != layer.kind.lower())
                )
                return next((other.name for other in candidates if self._can_be_explained(k, other.name)), None)
        return None

    def _by_value(self, k: int, source: int, name: str) -> str | None:
        """Return the layer of model `k` that has the value of a layer of model `source`, where one of them is inner."""
        here, there = self.models[source], self.models[k]
        layer = layers.find(here.model, name)
        (value,) = alignment.sampled(here.model, here.x, [layer], self.positions)
        candidates = [
            other
            for other in there.model.layers
            if (other.inner or layer.inner)
            and len(other.shape) == len(value.shape)
            and all(n in (None, m) for n, m in zip(other.shape, value.shape, strict=True))
            and self._can_be_explained(k, other.name)
        ]
        nearest = alignment.nearest(value, alignment.sampled(there.model, there.x, candidates, self.positions))
        return None if nearest is None else nearest.name

    def _another(self, k: int, source: int, name: str) -> str:
        """Return the next layer of model `source` that has a counterpart in model `k`; empty where none has."""
        known = [layer.name for layer in self.models[source].model.layers]
        after = known[known.index(name) + 1 :] if name in known else []
        return next((other for other in after if self._counterpart(k, source, other)), "")

    def _can_be_explained(self, k: int, name: str) -> bool:
        try:
            layers.find(self.models[k].model, name)
        except InputError:
            return False
        return True

    def _last_common(self, name: str) -> str:
        """Return `name`, or the last layer before it that has spatial axes and a counterpart in every other model."""
        if all(self._counterpart(k, 0, name) or self._by_value(k, 0, name) for k in range(1, len(self.models))):
            return name
        samples = self.samples[0]
        names = [sample.layer.name for sample in samples]
        last = names.index(name) if name in names else len(names) - 1
        for index in range(last, -1, -1):
            layer = samples[index].layer
            fits = layer.has_space and layer.reaches_output and not (layer.is_output or layer.inner)
            if fits and all(self._counterpart(k, 0, layer.name) for k in range(1, len(self.models))):
                return layer.name
        return name

    def _has_reordered_outputs(self, k: int, last: Match) -> bool:
        """Return whether the outputs are those of the first model in another order that the labels do not state."""
        if last.order is None or not self.samples[k][last.second].layer.is_output:
            return False
        labels, others = self.models[0].model.labels, self.models[k].model.labels
        if labels is None or others is None or len(others) != len(last.order):
            return True
        return [others[index] for index in last.order] != list(labels)

    def divergences(self, unlike: Collection[int]) -> Iterator[Divergence]:
        """Yield for each other model the errors along the layers, the layer where they jump, and the likely cause.

        Args:
            unlike: The models that are known to differ from the first: smaller errors are examined.
        """
        a = self.samples[0]
        for k, matches in self.matches.items():
            b = self.samples[k]
            errors = [m.error for m in matches]
            notes: list[str] = []
            steps = [Step(**vars(pair)) for pair in self.pairs(k)]
            examined = precision.examine((self.models[0], self.models[k]), (a, b), matches, notes)
            if examined is not None:
                steps = examined.steps(steps)
            cause: Diagnosis | None = None
            index: int | None
            if examined is not None and examined.explains:
                index, cause = examined.index, examined.cause
            else:
                index = divergence.first_jump(errors)
                if index is None and k in unlike:
                    index = divergence.first_jump(errors, divergence.SUSPECT)
                if index is None and matches and self._has_reordered_outputs(k, matches[-1]):
                    index = len(matches) - 1
                if index is not None:
                    # Another order of channels is not a mistake where all following layers have it too.
                    moved = (i for i, m in enumerate(matches[:index]) if m.order and len(a[m.first].shape) > 1)
                    index = next(moved, index)
            if index is not None:
                if cause is None:
                    cause, others = divergence.diagnose(a, b, matches, index, (self.models[0], self.models[k]))
                    notes += others
                m = matches[index]
                error = alignment.error(a[m.first].values, b[m.second].values)  # without reordering channels
                steps[index] = replace(steps[index], error=error)
            tolerance = examined.tolerance if examined is not None and examined.explains else None
            yield Divergence((0, k), tuple(steps), index, cause, tuple(notes), tolerance)
