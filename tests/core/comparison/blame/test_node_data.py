"""The file for Model Explorer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import blocks
import xcam


def test_every_location_and_part_has_its_share(tmp_path: Path) -> None:
    result = xcam.blame([blocks.network(), blocks.network("second", b1=lambda w: w * 1.3)], blocks.images())
    result.save_node_data(tmp_path / "nodes.json")
    content = json.loads((tmp_path / "nodes.json").read_text())
    values = {name: entry["value"] for name, entry in content["results"].items()}
    assert values["b1"] == values["join1"] == pytest.approx(100, abs=0.1)
    assert values["relu3"] == pytest.approx(0, abs=0.1)
    assert set(values) == {c.second for c in result.stretches} | {"b1"}
    assert [item["stop"] for item in content["gradient"]] == [0, 1]


def test_model_explorer_reads_it(tmp_path: Path) -> None:
    dacite = pytest.importorskip(
        "dacite", reason="Model Explorer is not installed: pip install ai-edge-model-explorer"
    )
    from model_explorer import node_data_builder as builder

    result = xcam.blame([blocks.network(), blocks.network("second", b1=lambda w: w * 1.3)], blocks.images())
    result.save_node_data(tmp_path / "nodes.json")
    content = json.loads((tmp_path / "nodes.json").read_text())
    data = dacite.from_dict(builder.GraphNodeData, content, dacite.Config(strict=True))
    assert data.results["b1"].value == pytest.approx(100, abs=0.1)
    assert json.loads(data.to_json_string())["results"] == content["results"]


@pytest.mark.parametrize(
    ("name", "message"), [("nodes.txt", "end it in .json"), ("none/n.json", "does not exist"), ("f.json", "a folder")]
)
def test_a_path_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "f.json").mkdir()
    with pytest.raises(xcam.InputError, match=message):
        xcam.Blame.check_node_data_path(tmp_path / name)
