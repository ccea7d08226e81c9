"""`batch`: explain a whole set of pictures, into a table that can be gone on with.

Decoding runs ahead of the model in threads of its own; what is done is on the disk, part by part; a run that was killed
goes on where it stopped, and its table is then the same as an undisturbed one's.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xcam.contract import Model
from xcam.dataset import storage
from xcam.dataset.inputs import MASK, listing
from xcam.dataset.job import Job, Opening, digest
from xcam.dataset.output import Output, schema
from xcam.dataset.worker import Worker
from xcam.errors import InputError, XcamWarning
from xcam.evaluation.registry import get as get_measure
from xcam.images.overlay import check_drawing
from xcam.targets import Score

Engine = Literal["local", "ray"]
BATCH, PART = 8, 256


@dataclass(frozen=True)
class Batch:
    """What a run has written."""

    output: Output
    pictures: int
    failed: int

    @property
    def table(self) -> str:
        """The folder with the table's parts: `pandas.read_parquet(b.table)`, `pyarrow.dataset.dataset(b.table)`."""
        return self.output.table

    def parts(self) -> Iterator[Any]:
        """The table, as pyarrow tables, part by part."""
        return self.output.parts()

    def report(self) -> str:
        """Write OUT/report.html: what looks wrong, sorted for a person. Its place is returned. Raises InputError, BackendError."""
        from xcam.dataset.page import page

        place = storage.joined(self.output.place, "report.html")
        storage.write(place, page(self.output))
        return place


def batch(
    model: Any,
    inputs: str | Sequence[str],
    out: str | os.PathLike[str],
    backend: str | None = None,
    loading: Mapping[str, Any] | None = None,
    layer: str | None = None,
    target: Any = None,
    method: str = "gradcam",
    score: Score = "logit",
    measures: Sequence[str] = (),
    maps: bool = True,
    rivals: bool = False,
    pictures: Mapping[str, Any] | bool = False,
    batch: int = BATCH,
    part: int = PART,
    engine: Engine = "local",
    workers: int | None = None,
    gpus_per_worker: float = 0,
    address: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Batch:
    """Explain every picture of a set.

    model: a path or a name that `load` takes (then backend, and loading: its further arguments), or what `load` returned
        (for the local engine).
    inputs: folders, patterns, tables (.csv, .parquet: columns path, and if need be class, x0, y0, x1, y1, mask), shards
        (.tar, as WebDataset makes them); here, or where fsspec reaches.
    out: a folder. The table goes to out/table, overlays to out/pictures. A run that was stopped goes on; one that asks for
        something else is refused.
    layer, method, score, and further options: as for `explain`. target: also a list; "@class": the class that is told.
    measures: names of `xcam.list_measures()`; those that need a box or a mask are empty where there is none.
    maps: keep the raw maps in the table. rivals: where the top class is explained, hold the second best's map against its.
    pictures: write overlays; a mapping: with these options of `Explanation.overlay`.
    batch: pictures in one forward pass. part: pictures in one part of the table, which is written whole or not at all.
    engine: `local`, or `ray`, with `workers` that each open the model, at `address` (default: this machine).
    threads: for decoding; default: as many as there are cores.

    Raises InputError, ModelError or BackendError. A picture that fails is a row with its error.
    """
    if engine not in ("local", "ray"):
        raise InputError(f"no engine {engine!r}; known: local, ray")
    if batch < 1 or part < 1:
        raise InputError(f"batch is {batch} and part is {part}; give 1 or more")
    told = isinstance(target, str) and target == "@class"
    targets = tuple(target) if isinstance(target, list | tuple) else () if target is None or told else (target,)
    if "@class" in targets:
        raise InputError(
            "the target @class stands alone; leave out the others, or explain them in a run of their own"
        )
    drawing = dict(pictures) if isinstance(pictures, Mapping) else {} if pictures else None
    check_drawing(**drawing or {})
    rivals = rivals and not targets and not told
    for name in measures:
        if "shuffled" in get_measure(name).inputs:
            raise InputError(f"{name} is a measure of a whole set; `xcam evaluate` has it")
    job = Job(
        layer,
        targets,
        told,
        method,
        options,
        score,
        tuple(dict.fromkeys(measures)),
        maps,
        rivals,
        drawing,
        batch,
        part,
    )
    output = Output(os.fspath(out))
    found = listing([inputs] if isinstance(inputs, str | os.PathLike) else list(inputs), output.own)
    _warn_of_empty(job.measures, found)
    opening = model if isinstance(model, Model) else Opening(os.fspath(model), backend, dict(loading or {}))
    with output.held():
        output.agree(_facts(opening, job, found))
        if drawing is not None:
            storage.make_folder(output.pictures)
        columns = schema(job.measures, job.maps, job.rivals)
        done = output.done()
        proved = output.check(done, columns)
        numbers = range(-(-len(found) // part))
        todo = [k for k in numbers if k not in done]
        if todo and engine == "ray":
            from xcam.dataset.cluster import run

            run(opening, job, output, found, todo, workers, gpus_per_worker, address, threads, proved)
        elif todo:
            opened = opening.model() if isinstance(opening, Opening) else opening
            worker = Worker(opened, job, output, threads or os.cpu_count() or 2, proved)
            for number, rows in worker.run([(k, k * part, found.slice(k * part, part)) for k in todo]):
                output.write(number, rows, columns)
    total = failed = 0
    why = ""
    for table in output.parts(["error"]):
        total += len(table)
        failed += len(table) - table["error"].null_count
        why = why or next((text for text in table["error"].to_pylist() if text), "")
    if failed == total:
        raise InputError(f"none of the {total} pictures could be explained: {why}; {output.table} has a row for each")
    return Batch(output, len(found), failed)


def _warn_of_empty(measures: Sequence[str], found: Any) -> None:
    """A measure of where the object is has no value where nothing says so."""
    import pyarrow.compute as pc

    empty = [name for name in measures if "masks" in get_measure(name).inputs]
    if empty and found[MASK].null_count == len(found) and not pc.max(pc.list_value_length(found["boxes"])).as_py():
        warnings.warn(
            f"no picture has a box or a mask, so {' and '.join(empty)} will be empty; give a table with the columns "
            "x0, y0, x1, y1, or mask",
            XcamWarning,
            stacklevel=3,
        )


def _facts(opening: Opening | Model, job: Job, found: Any) -> dict[str, Any]:
    """What a run must have in common with the one that it goes on with."""
    model = {"model": opening.name, "backend": opening.backend} if isinstance(opening, Model) else opening.facts()
    return {**model, **job.facts(), "count": len(found), "inputs": digest(found)}
