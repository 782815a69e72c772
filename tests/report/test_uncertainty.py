"""The report's section on abstention and prediction sets."""

import dataclasses

import numpy as np
import pytest

from medadv_jax.report.read_runs import load_run
from medadv_jax.report.style import Picture
from medadv_jax.report.tables import Table
from medadv_jax.report.uncertainty import uncertainty_parts
from tests.helpers.synthetic_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(make_run(tmp_path_factory.mktemp("run"), optional=False))


def number(cell: object) -> float:
    assert isinstance(cell, float)
    return cell


def test_attacked_images_are_riskier_and_their_sets_miss_more(run):
    names, clean = np.array(run.defenses), {d: run.clean(d) for d in run.defenses}
    calibration = {
        "defense": np.repeat(names, len(run.label)),
        "label": np.tile(run.label, len(names)),
        "score": np.concatenate([clean[name].score for name in names]),
    }
    table, figure = uncertainty_parts(dataclasses.replace(run, calibration=calibration))
    assert isinstance(table, Table)
    assert isinstance(figure, Picture)
    assert [row[:2] for row in table.rows] == [
        (name, kind) for name in names for kind in ("clean", "attacked")
    ]
    for before, attacked in zip(table.rows[::2], table.rows[1::2], strict=True):
        assert before[3] == pytest.approx(0.9, abs=0.02)  # calibrated on the very images
        assert before[5] == pytest.approx(0.9, abs=0.02)
        assert number(attacked[2]) > number(before[2])
        assert number(attacked[5]) < number(before[5])
    assert "160 test images" in figure.caption


def test_runs_of_earlier_versions_have_no_such_section(run):
    assert not uncertainty_parts(run)
