"""Several runs in one report, damaged records, and tables as files."""

import functools
import json
import re
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medadv_jax.config import FIELDS_WITHOUT_RESULT
from medadv_jax.errors import UserError
from medadv_jax.report import runs_page, write_report
from medadv_jax.report.aggregate import Series, make_groups, without_copies
from medadv_jax.report.page import Page
from medadv_jax.report.read_runs import load_run
from medadv_jax.report.style import Omitted
from medadv_jax.report.tables import Estimate, Spread, Table, as_csv, as_latex
from medadv_jax.report.transfer import load_transfer, transfer_section, transfer_table
from tests.helpers.synthetic_run import edit, make_run, make_transfer


def test_several_runs_stand_in_the_layout_of_the_paper(tmp_path):
    paths = [
        make_run(
            tmp_path / f"{model}{seed}", model=model, seed=seed, defenses=["base", "autoencoder"]
        )
        for model, seed in (("resnet50", 0), ("resnet50", 1), ("vgg16", 0))
    ]
    runs = [load_run(path) for path in paths]
    groups = make_groups(runs)
    assert [(g.label, len(g.runs)) for g in groups] == [("resnet50", 2), ("vgg16", 1)]
    both = [run.summary("base", "adaptive", "pgd") for run in runs[:2]]
    values = [m.accuracy for m in both if m and m.accuracy is not None]
    spread = groups[0].spread(Series("base", "adaptive"), "pgd", "accuracy")
    assert spread == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    page = write_report(paths, tmp_path / "out").read_text(encoding="utf-8")
    table = (tmp_path / "out" / "tables" / "table_v.csv").read_text().splitlines()
    assert sum("impossible" in line for line in table) == 52
    assert sum("unbalanced" in line for line in table) == 3
    assert sum(",possible" in line for line in table) == 5
    ours = next(line for line in table if line.startswith("resnet50,base,pgd"))
    assert ours.split(",")[4:7] == [str(np.mean(values)), str(np.std(values, ddof=1)), "0.5"]
    names = {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert names == {
        *(f"figure_{n}_breakhis" for n in ("05", "06a", "06b", "07a", "07b", *range(14, 19))),
        "figure_03_resnet500", "figure_12b_pgd_resnet500", "figure_13a_pgd_vgg160",
        *(f"figure_{n}" for n in ("01", "02a", "02b", "04")),
    }  # fmt: skip
    assert "inception_v3" in page  # a network of the paper that was not run


def test_a_best_defence_that_always_predicts_one_class_is_marked(tmp_path):
    def change(table):
        ours = np.array([d == "adversarial" for d in table["defense"].to_pylist()])
        column = table.schema.get_field_index("predicted")
        predicted = np.where(ours, 1, table["predicted"].to_numpy()).tolist()
        field = table.schema.field(column)
        return table.set_column(column, field, pa.array(predicted, field.type))

    path = make_run(tmp_path / "run", defenses=["base", "adversarial"], images=80, optional=False)
    edit(path, change)
    page = write_report([path, make_run(tmp_path / "b", defenses=["base"], optional=False)],
                        tmp_path / "out").read_text(encoding="utf-8")  # fmt: skip
    assert (
        page.count("adversarial (no better than always predicting one class)") == 3
    )  # two cards, the table
    assert "base (no better" not in page
    seeds = [path, make_run(tmp_path / "c", seed=1, defenses=["base", "adversarial"])]
    page = write_report(seeds, tmp_path / "seeds").read_text(encoding="utf-8")
    assert "adversarial (in 1 of 2 runs no better than always predicting one class)" in page
    alone = write_report([path], tmp_path / "alone").read_text(encoding="utf-8")
    assert "no better than always predicting one class" in alone


def test_groups_differ_by_more_than_seed_and_fold(tmp_path):
    runs = []
    for i, settings in enumerate(({}, {"data": {"fold": 1}}, {"model": {"width": 1.0}})):
        path = make_run(
            tmp_path / str(i), seed=i % 2, images=20, patients=10, optional=False,
            defenses=["base"], config=settings,
        )  # fmt: skip
        runs.append(load_run(path))
    groups = make_groups(runs)
    assert [(g.label, len(g.runs)) for g in groups] == [
        ("resnet50 (model.width=0.5)", 2), ("resnet50 (model.width=1.0)", 1),
    ]  # fmt: skip
    assert "fewer than 100" in " ".join(runs_page.warnings(runs))


@pytest.mark.parametrize("field", FIELDS_WITHOUT_RESULT)
def test_fields_that_change_no_result_do_not_separate_runs(tmp_path, field):
    section, _, name = field.rpartition(".")
    runs = []
    for seed, value in enumerate(("one", "other")):
        path = make_run(
            tmp_path / value, seed=seed, images=20, patients=10, optional=False, defenses=["base"]
        )
        content = json.loads((path / "config.json").read_text())
        (content["config"][section] if section else content["config"])[name] = value
        (path / "config.json").write_text(json.dumps(content))
        runs.append(load_run(path))
    assert [(g.label, len(g.runs)) for g in make_groups(runs)] == [("resnet50", 2)]


def test_runs_of_other_test_images_are_told_apart(tmp_path):
    sizes = (120, 100)
    runs = [
        load_run(make_run(tmp_path / str(n), images=n, defenses=["base"], optional=False))
        for n in sizes
    ]
    assert "the runs have different test images" in " ".join(runs_page.warnings(runs))
    assert not runs_page.warnings(runs[:1])


def test_runs_that_were_tried_on_each_other_are_read_beside_them(tmp_path):
    full = make_run(tmp_path / "full", optional=False)
    path = make_transfer(tmp_path / "both", [full, full.with_name("other")])
    with pytest.raises(UserError, match="none of its runs is given; add full"):
        write_report([path], tmp_path / "out")
    stranger = load_run(full.rename(tmp_path / "stranger"))
    with pytest.raises(UserError, match="none of its runs is given; add full"):
        load_transfer(path, [stranger])
    run = load_run(stranger.path.rename(full))
    transfer = load_transfer(path, [run])
    assert transfer_table(transfer).rows[1][:3] == ("full/base", 0.1, 0.275)
    (ensemble,) = (p for p in transfer_section(transfer).parts if isinstance(p, Table))
    worst = run.worst("hybrid")
    assert worst is not None
    attacked = (worst.predicted == run.label).mean()
    row: Any = ensemble.rows[0]
    assert (row[0], row[2].value) == ("hybrid/mean", attacked)
    alone = load_transfer(make_transfer(tmp_path / "alone", [full], votes=False), [run])
    left = [p for p in transfer_section(alone).parts if isinstance(p, Omitted)]
    assert [p.name for p in left] == ["Ensemble"]


def test_damaged_records_are_refused_with_a_remedy(tmp_path):
    path = make_run(tmp_path / "x", images=20, patients=10, optional=False, defenses=["base"])
    whole = (path / "predictions.parquet").read_bytes()
    edit(path, lambda table: table.slice(0, table.num_rows - 1))
    with pytest.raises(UserError, match="19 rows for 20 test examples; remove the file"):
        load_run(path)
    (path / "predictions.parquet").write_bytes(whole)
    edit(path, lambda table: table.slice(20))  # the first rows are of clean images
    with pytest.raises(UserError, match="base has no clean predictions"):
        load_run(path)
    edit(path, lambda table: table.slice(0, 0))
    with pytest.raises(UserError, match="no rows"):
        load_run(path)
    (path / "splits.json").write_text("{")
    (path / "predictions.parquet").write_bytes(whole)
    with pytest.raises(UserError, match=r"splits\.json: damaged"):
        load_run(path)
    (path / "predictions.parquet").unlink()
    with pytest.raises(UserError, match=r"no predictions\.parquet"):
        load_run(path)


def test_there_must_be_something_to_read(tmp_path):
    with pytest.raises(UserError, match="no run: give at least one"):
        write_report([], tmp_path)


def test_a_table_three_times():
    table = Table(
        "t", "A & B", ("name", "accuracy", "over runs"),
        [("50 % <x>", Estimate(0.12345678, (-0.1, 0.2)), Spread(0.5, 0.25)),
         ("$y_1$", Estimate(None), None)],
        ("a note & more",),
    )  # fmt: skip
    assert as_csv(table) == (
        "name,accuracy,accuracy low,accuracy high,over runs,over runs SD\n"
        "50 % <x>,0.12345678,-0.1,0.2,0.5,0.25\n$y_1$,,,,,\n"
    )
    latex = as_latex(table)
    assert r"50 \% \textless{}x\textgreater{} & 0.123 ($-$0.100 to 0.200)" in latex
    assert r" & 0.500 $\pm$ 0.250 \\" in latex
    assert r"\$y\_1\$ & -- & -- \\" in latex
    assert r"\caption{A \& B}" in latex
    assert latex.count("{") == latex.count("}")
    html = Page("t", "", "", (), (), [table], ()).html()
    assert "50 % &lt;x&gt;" in html
    assert "a note &amp; more" in html
    assert re.search(r'0\.123 <span class="interval">\(−0\.100 to 0\.200\)', html)


def test_a_sweep_stands_for_its_finished_cells(tmp_path):
    names = ("first", "second", "third")
    for seed, name in enumerate(names[:2]):
        run = make_run(tmp_path / name, seed=seed, defenses=["base"], optional=False)
        (run / "results.csv").write_text("")
    failures = dict(zip(names, ("", "", "killed by SIGKILL"), strict=True))
    journal = {name: {"failure": failure} for name, failure in failures.items()}
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": journal}))
    page = write_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert "2 runs on BreakHis" in page
    assert "Cell third is missing from these tables: killed by SIGKILL." in page
    (tmp_path / "second" / "results.csv").unlink()
    page = write_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert "Cell second is missing from these tables: it has not been finished." in page
    (tmp_path / "first" / "results.csv").unlink()
    with pytest.raises(UserError, match="no cell of this sweep is finished"):
        write_report([tmp_path], tmp_path / "report")
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(UserError, match=r"sweep\.json: damaged.*; remove it"):
        write_report([tmp_path], tmp_path / "report")


def test_a_copy_of_a_run_is_no_second_seed(tmp_path):
    """Its config may say another seed: what it predicts is the same to the last bit."""
    make = functools.partial(make_run, images=20, patients=10, optional=False, defenses=["base"])
    one, two = make(tmp_path / "one", seed=1), make(tmp_path / "two", seed=2)
    copied = shutil.copytree(one, tmp_path / "copy")
    content = json.loads((copied / "config.json").read_text())
    content["config"]["seed"] = 7
    (copied / "config.json").write_text(json.dumps(content))
    kept, copies = without_copies([load_run(path) for path in (one, copied, two)])
    assert [run.name for run in kept] == ["one", "two"]
    assert copies == [f"{copied} is a copy of {one}: counted once."]
    page = write_report([one, copied], tmp_path / "out").read_text(encoding="utf-8")
    assert f"{copied} is a copy of {one}: counted once." in page
    assert "2 runs" not in page


def test_names_in_a_config_lead_to_no_file_outside(tmp_path):
    deep = tmp_path / "deep" / "er"
    paths = [deep / name for name in ("one", "two")]
    for seed, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        make_run(path, images=20, patients=10, optional=False, seed=seed)
        content = json.loads((path / "config.json").read_text())
        content["config"]["data"]["name"] = "x/../../../../evil"
        content["config"]["data"] |= {"num_folds": 2, "fold": seed}
        (path / "config.json").write_text(json.dumps(content))
    before = set(tmp_path.rglob("*"))
    write_report(paths[:1], deep / "alone")
    write_report(paths, deep / "both")
    new = set(tmp_path.rglob("*")) - before
    assert all({deep / "alone", deep / "both"} & {path, *path.parents} for path in new)
    assert len([path for path in new if "evil" in path.name and path.suffix == ".svg"]) > 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("data.name", 3), ("model.name", None), ("attack.epsilon", "x"), ("attack.epsilon", -1.0),
     ("seed", []), ("eval.num_steps", True)],
)  # fmt: skip
def test_a_config_of_other_types_is_refused(tmp_path, field, value):
    path = make_run(tmp_path / "x", images=20, patients=10, optional=False)
    content = json.loads((path / "config.json").read_text())
    *sections, name = field.split(".")
    place = content["config"]
    for section in sections:
        place = place[section]
    place[name] = value
    (path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"config\.json: config\.{field}"):
        load_run(path)


def test_only_an_earlier_report_is_replaced(tmp_path):
    run = make_run(tmp_path / "x", images=20, patients=10, optional=False)
    out = tmp_path / "paper"
    mine = out / "figures" / "mine.svg"
    mine.parent.mkdir(parents=True)
    mine.write_text("drawn by hand")
    with pytest.raises(UserError, match=r"mine\.svg: is of no report"):
        write_report([run], out)
    assert mine.read_text() == "drawn by hand"
    mine.unlink()
    write_report([run], out)
    (out / "figures" / "old.svg").write_text("of an earlier report")
    write_report([run], out)
    assert not (out / "figures" / "old.svg").exists()
