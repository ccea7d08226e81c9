"""Tables of batches with maps whose energy is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xcam.dataset import findings
from xcam.dataset.output import Output, schema

SPREAD = np.ones((10, 10), np.float32)
SPOT = np.zeros((10, 10), np.float32)
SPOT[4:6, 4:6] = 1
CORNER = np.zeros((10, 10), np.float32)
CORNER[:2, 8:] = 1
FRAME = np.zeros((10, 10), np.float32)
FRAME[0] = FRAME[-1] = 1


def row(path: str = "a.jpg", cam: np.ndarray | None = SPOT, **fields: Any) -> dict[str, Any]:
    known = {"path": path, "class": None, "prediction": "cat", "prediction_index": 3, "probability": 0.75}
    known |= {
        "correct": None,
        "target": "cat",
        "target_index": 3,
        "score": 2.0,
        "rival": "dog",
        "rival_correlation": 0.1,
    }
    if cam is not None:
        known |= {
            "map_height": cam.shape[0],
            "map_width": cam.shape[1],
            "map": cam.ravel(),
            "zero": not (cam > 0).any(),
        }
    return known | {"error": None} | fields


def table(rows: list[dict[str, Any]], maps: bool = True, rivals: bool = True) -> Any:
    return pa.Table.from_pylist(rows, schema([], maps, rivals))


def collected(*rows: dict[str, Any], **columns: bool) -> findings.Findings:
    return findings.collect([table(list(rows), **columns)])


def failed(path: str = "bad.jpg", reason: str = "bad.jpg is not an image") -> dict[str, Any]:
    return {"path": path, "error": reason}


def written(folder: Path, rows: list[dict[str, Any]], **columns: bool) -> Output:
    (folder / "table").mkdir(parents=True, exist_ok=True)
    output = Output(str(folder))
    output.write(0, rows, schema([], columns.get("maps", True), columns.get("rivals", True)))
    return output
