"""The registry of measures."""

from __future__ import annotations

from xcam.evaluation.registry import list_measures


def test_every_measure_has_a_summary_a_source_and_bounds() -> None:
    for name, measure in list_measures().items():
        assert measure.name == name
        assert measure.summary
        assert any(c.isdigit() for c in measure.source)
        assert measure.better in ("higher", "lower")
        assert measure.bounds[0] < measure.bounds[1]
