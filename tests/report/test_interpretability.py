"""The report's section on saliency maps."""

import dataclasses

import numpy as np
import pytest

from medadv_jax.data.splits import Example
from medadv_jax.evaluation.interpretability import METHODS, movement_rows
from medadv_jax.evaluation.predictions import to_columns
from medadv_jax.report.interpretability import interpretability_parts
from medadv_jax.report.read_runs import load_run
from medadv_jax.report.style import Picture
from medadv_jax.report.tables import Table
from tests.helpers.synthetic_run import make_run

EXAMPLES = [Example(f"e{i}", i, "g", 0, "", "") for i in range(2)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("run"), optional=False, defenses=["base"])
    return load_run(path)


def test_means_over_images_and_overlays(run):
    rng = np.random.default_rng(0)
    clean, still = rng.random((2, 4, 4)), np.zeros((2, 4, 4))
    tables = [
        movement_rows(("base", METHODS[1], change, 0.03), EXAMPLES, np.array([0, 1]),
                      np.array([1, 1]), clean, other)
        for change, other in (("noise", clean), ("pgd", np.stack([-clean[0], still[0]])))
    ]  # fmt: skip
    columns = {
        name: np.concatenate([values[name] for values in map(to_columns, tables)])
        for name in to_columns(tables[0])
    }
    maps = {"example": np.array(["e0", "e1"])}
    for kind in ("clean", "attacked"):
        maps[f"base/{kind}"] = rng.random((2, 16, 16, 3))
        maps |= {f"base/{kind}/{method}": clean for method in METHODS}
    records = dataclasses.replace(run, interpretability=columns, saliency_maps=maps)
    table, figure = interpretability_parts(records)
    assert isinstance(table, Table)
    assert isinstance(figure, Picture)
    assert table.rows == [
        ("base", "Grad-CAM", "pgd", 2, pytest.approx(-1), pytest.approx(0.25, abs=0.25), 0.5),
        ("base", "Grad-CAM", "noise", 2, pytest.approx(1), 1, 0.5),
    ]
    assert figure.name == "saliency_base"


def test_runs_without_maps_have_no_such_section(run):
    assert not interpretability_parts(run)
