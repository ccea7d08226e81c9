"""Weights in a file, and the names under which a module takes them.

Training scripts wrap modules and dictionaries in many ways. Of the dictionaries in a file and the prefixes of their names,
those are chosen under which the names and shapes of the module fit. No code is loaded from a pickle.
"""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xcam.contract.messages import one_line
from xcam.errors import InputError, ModelError

State = dict[str, Any]

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
"""Parts of names that torch's wrappers insert: compile, FSDP, checkpoints, DataParallel and averages."""

AVERAGES = ("ema", "averag", "swa", "teacher", "momentum", "target")
"""Parts of the names of second copies of a module's weights, taken only where the weights themselves are missing."""

COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged", "num_updates", "decay")
"""Last parts of the names of entries that training tools add to a file, and that no output depends on."""

DEEPEST = 3
"""Levels of nested dictionaries that are searched."""


@dataclass(frozen=True)
class _Fit:
    """A dictionary of the file under the names of the module."""

    path: str
    """The keys that lead to the dictionary, and the prefix that is removed from its names."""
    state: State
    missing: list[str]
    unexpected: list[str]
    differing: list[str]
    """Names with both shapes."""
    left_out: list[str]
    """Names in the file without the prefix: weights of parts around the module."""

    @property
    def complete(self) -> bool:
        """Whether every name and shape fits."""
        return not (self.missing or self.unexpected or self.differing)

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """Larger is better: complete, then the number of names that fit, then the weights before their averages."""
        fitting = len(self.state) - len(self.differing)
        return self.complete, fitting, not any(name in self.path.lower() for name in AVERAGES)


def content(path: Path) -> Any:
    """Return the content of a file of weights.

    Raises:
        InputError: the file does not exist.
        ModelError: it cannot be read, or is a pickle that needs more than `weights_only`.
    """
    if not path.is_file():
        raise InputError(f"cannot read weights from {path}: it does not exist; check the path")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise ModelError(f"cannot load {path}: {one_line(error)}; check that it is complete") from error
        raise ModelError(
            f"cannot load {path}: it is a pickle of more than weights, and loading one runs code from the file; "
            "save model.state_dict() instead, or load it yourself if you trust it and pass the module"
        ) from error


def state_dicts(value: Any, path: Path) -> dict[str, State]:
    """Return the dictionaries of weights in a file's content, by the keys that lead to them; the largest first.

    Raises:
        ModelError: it holds none.
    """
    states = dict(_nested(value, "", DEEPEST))
    if not states:
        raise ModelError(
            f"cannot load {path}: it holds {type(value).__name__}, not weights by name; save model.state_dict()"
        )
    return dict(sorted(states.items(), key=lambda item: -len(item[1])))


def fill(module: nn.Module, path: Path) -> list[str]:
    """Load the weights of a file into a module; all must fit.

    Returns:
        Notes: which weights of several were taken, and which entries of the file were left out.

    Raises:
        InputError: the file does not exist.
        ModelError: it holds no weights, or they do not fit; the module may then have some of them.
    """
    states = state_dicts(content(path), path)
    saved = module.state_dict(keep_vars=True)
    unsaved = {name for name, _ in module.named_buffers()} - set(saved)
    fits = [fit for key, state in states.items() for fit in _fits(saved, unsaved, key, state)]
    best = max(fits, key=lambda fit: fit.rank)
    try:
        # Where the names do not fit, the module may convert them: weights of an older version of its class.
        module.load_state_dict(best.state if best.complete else next(iter(states.values())), strict=not best.complete)
    except Exception as error:
        raise ModelError(
            f"cannot load the weights in {path}: they do not fit {type(module).__name__}: "
            f"{_misfit(best) or one_line(error)}; use the factory that they were saved from"
        ) from error
    if not best.complete:
        return []
    notes = []
    others = sorted({fit.path for fit in fits if fit.complete and fit.path != best.path})
    if others:
        notes.append(f"weights of {best.path!r} in {path.name}, which also holds {_listed(others)}")
    if best.left_out:
        notes.append(f"weights in {path.name} outside {best.path!r} were left out: {_listed(best.left_out)}")
    return notes


def _nested(value: Any, key: str, depth: int) -> Iterator[tuple[str, State]]:
    """Yield the dictionaries of tensors in a value, with their keys."""
    if not isinstance(value, Mapping):
        return
    if any(isinstance(part, Tensor) for part in value.values()) and all(isinstance(name, str) for name in value):
        yield key, dict(value) if not isinstance(value, dict) else value
    if depth:
        for name, part in value.items():
            yield from _nested(part, f"{key}.{name}" if key else str(name), depth - 1)


def _fits(saved: Mapping[str, Any], unsaved: Collection[str], key: str, state: State) -> Iterator[_Fit]:
    """Yield the fits of a dictionary under the prefixes, removed or added, with which most names and shapes agree.

    Args:
        saved: the module's own state.
        unsaved: names of buffers that are not part of it; older versions of a class may have saved them.
        key: the keys that lead to the dictionary.
        state: the dictionary.
    """
    wanted, stored = _unwrapped(saved), _unwrapped(state)

    def alike(name: str, other: str) -> bool:
        return _same_shape(state[stored[name]], saved[wanted[other]])

    ways = [(prefix, "") for prefix in _prefixes(stored, wanted, alike)]
    ways += [("", prefix) for prefix in _prefixes(wanted, stored, lambda name, other: alike(other, name))]
    for removed, added in dict.fromkeys([*ways, ("", "")]):
        names = {  # in the module → in the file
            wanted.get(added + name.removeprefix(removed), added + name.removeprefix(removed)): original
            for name, original in stored.items()
            if name.startswith(removed)
        }
        filled = {name: state[original] for name, original in names.items() if name in saved}
        tied = {id(saved[name]) for name in filled}
        yield _Fit(
            ".".join(part for part in (key, removed.rstrip(".")) if part),
            _with_versions(filled, names, state),
            [
                name
                for name in saved
                if name not in names and not name.endswith("num_batches_tracked") and id(saved[name]) not in tied
            ],
            [name for name in names if name not in saved and not _is_counter(name) and name not in unsaved],
            [
                f"{name} is {_by(value)} in the file and {_by(saved[name])} in the module"
                for name, value in filled.items()
                if not _same_shape(value, saved[name])
            ],
            [original for name, original in stored.items() if not name.startswith(removed) and not _is_counter(name)],
        )


def _unwrapped(state: Mapping[str, Any]) -> dict[str, str]:
    """Return a state's names by the same names without the parts that wrappers insert."""
    names = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in state}
    return names if len(names) == len(state) else {name: name for name in state}


def _prefixes(
    names: Mapping[str, str], others: Mapping[str, str], alike: Callable[[str, str], bool], most: int = 4
) -> list[str]:
    """Return the prefixes of `names` without which most of them are among `others`, with the same shape."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            rest = ".".join(parts[i:])
            if rest in others and alike(name, rest):
                counts[name.removesuffix(rest)] += 1
    return [prefix for prefix, _ in counts.most_common(most)]


def _with_versions(filled: State, names: Mapping[str, str], state: State) -> State:
    """Return the weights with the versions of their modules, by which torch converts older ones."""
    versions = getattr(state, "_metadata", None)
    if not isinstance(versions, Mapping):
        return filled
    result: Any = OrderedDict(filled)
    paths = {name.rpartition(".")[0]: original.rpartition(".")[0] for name, original in names.items()}
    result._metadata = {path: versions[original] for path, original in paths.items() if original in versions}
    return result


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _same_shape(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, Tensor) or is_lazy(wanted):
        return True  # settings, and weights that take the shape of the first input
    if not isinstance(value, Tensor):
        return False
    return value.shape == wanted.shape or (wanted.ndim == 0 and value.numel() == 1)


def _by(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "×".join(map(str, value.shape)) or "a number"


def _misfit(fit: _Fit) -> str:
    """Return in one line which names and shapes do not fit."""
    facts = []
    if fit.missing:
        facts.append(f"missing from the file: {_listed(fit.missing)}")
    if fit.unexpected:
        facts.append(f"unknown to the module: {_listed(fit.unexpected)}")
    if fit.differing:
        facts.append(f"of another shape: {_listed(fit.differing)}")
    return ", ".join(facts)


def _listed(names: Sequence[str], most: int = 3) -> str:
    """Return a count and the first names."""
    return f"{len(names)} ({', '.join(names[:most])}{', …' if len(names) > most else ''})"
