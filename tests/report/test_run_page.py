"""The report of one run, over the synthetic runs of tests/helpers/synthetic_run.py."""

import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medadv_jax.errors import UserError
from medadv_jax.evaluation.statistics import cluster_bootstrap, holm, wilson_interval
from medadv_jax.report import comparison, run_page, run_tables, write_report
from medadv_jax.report.example_panels import CORRECT, WRONG, choose, panels, prediction
from medadv_jax.report.read_runs import load_run
from medadv_jax.report.records import RunRecords
from medadv_jax.report.run_figures import figures, robustness_curves
from medadv_jax.report.style import Omitted, Picture
from medadv_jax.report.tables import Estimate, as_csv, as_latex
from tests.helpers.synthetic_run import edit, make_run

REPOSITORY = Path(__file__).parents[2]
HOSTILE = '<script>alert("x")</script>&$a$'


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A run with every optional file."""
    return make_run(tmp_path_factory.mktemp("runs") / "full")


class Links(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.targets, self.ids = set(), [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.targets += [value for name, value in attrs if name in ("href", "src")]
        self.ids.update(value for name, value in attrs if name == "id")


def test_script_draws_a_page_that_needs_no_network_and_no_jax(tmp_path):
    run = make_run(tmp_path / "x", defenses=["base", "hybrid"])
    done = call_script(run, f"--output={run / 'report'}")
    assert done.stdout.splitlines() == [str(run / "report" / "index.html"), "[]"]
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    links = Links(page)
    assert not links.tags & {"script", "link", "iframe", "object"}
    assert "@import" not in page
    assert "url(" not in page
    for target in links.targets:
        if target.startswith("#"):
            assert target[1:] in links.ids
        elif not target.startswith("data:image/svg+xml;base64,"):
            assert (run / "report" / target).is_file(), target
    assert page.count("data:image") == len(list((run / "report" / "figures").iterdir())) > 12
    # Drawn again here, it is the same to the last bit, and nothing of the old one stays.
    before = {p.relative_to(run): p.read_bytes() for p in (run / "report").rglob("*.*")}
    (run / "report" / "figures" / "old.svg").touch()
    write_report([run], run / "report")
    assert before == {p.relative_to(run): p.read_bytes() for p in (run / "report").rglob("*.*")}


def call_script(*arguments) -> subprocess.CompletedProcess:
    """Runs scripts/report.py, and prints which heavy modules it has imported."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path('scripts/report.py', run_name='__main__')\n"
        "finally:\n    print([m for m in ('jax', 'flax', 'tensorflow') if m in sys.modules])\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_script_says_what_is_wrong_in_one_line(tmp_path):
    done = call_script(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: not a run directory")
    assert done.stderr.count("\n") == 1


def test_a_bare_run_leaves_figures_out_and_says_why(tmp_path):
    path = make_run(tmp_path / "bare", dataset="phantoms", defenses=["base"], optional=False)
    (path / "metrics.jsonl").unlink()
    (path / "splits.json").unlink()
    edit(path, lambda table: table.drop_columns(["subtype"]))  # as older runs have it
    page = write_report([path], tmp_path / "out").read_text(encoding="utf-8")
    assert "The self-checks have not been run." in page
    for reason in ("curves.parquet holds no two points", "pictures.npz", "metrics.jsonl holds no"):
        assert reason in page
    assert "no run has both base and a defence" in page
    assert "base is the only classifier that was attacked" in page
    names = {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert names == {
        "headline", "accuracy_by_attack", "confusion", "roc", "reliability",
        "figure_07b_phantoms", "figures_15_to_18", "figure_01", "figure_02a", "figure_02b",
        "figure_04",
    }  # fmt: skip
    assert "Table V" not in page
    assert "Detector" not in page


def test_names_from_a_run_are_text_never_markup(tmp_path):
    path = make_run(tmp_path / "x", images=40, patients=20, defenses=["base", "adversarial"])
    renamed = path.rename(tmp_path / "<b>run")
    checks = json.loads((renamed / "self_checks.json").read_text())
    checks["headline"] = checks["checks"][0]["name"] = HOSTILE
    checks["checks"][0]["explanation"] = HOSTILE
    (renamed / "self_checks.json").write_text(json.dumps(checks))
    config = json.loads((renamed / "config.json").read_text())
    config["config"]["model"]["name"] = config["device"] = HOSTILE
    config["config"]["data"]["dir"] = "scans & <i>more</i>"  # a value in the table of settings
    (renamed / "config.json").write_text(json.dumps(config))

    def hostile(table):
        for name in ("defense", "subtype"):
            values = [HOSTILE + v if v != "base" else v for v in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        return table

    edit(renamed, hostile)
    report = run_page.build(load_run(renamed))
    page = report.html()
    assert "<script" not in page
    assert "<b>run" not in page
    assert "&lt;script&gt;" in page
    assert page.count("scans &amp; &lt;i&gt;more&lt;/i&gt;") == 1
    assert Links(page).tags <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "div",
        "section", "ul", "li", "span", "b", "nav", "a", "figure", "figcaption", "img", "table",
        "thead", "tbody", "tr", "th", "td", "details", "summary", "dl", "dt", "dd",
    }  # fmt: skip
    assert report.pictures
    assert all("<script" not in picture.svg for picture in report.pictures)
    assert report.tables
    assert all("$a$" not in as_latex(table) for table in report.tables)


def test_worst_case_is_for_each_image_the_attack_that_harms_most(full):
    run = load_run(full)
    rows = pq.read_table(full / "predictions.parquet").to_pylist()
    right = {}
    for row in rows:
        if row["defense"] == "hybrid" and row["threat_model"] in ("none", "adaptive"):
            ok = row["predicted"] == row["label"]
            right[row["example"]] = right.get(row["example"], True) and ok
    worst = run.worst("hybrid")
    assert worst is not None
    assert ((worst.predicted == run.label) == [right[e] for e in run.example]).all()
    attacked = [run.get("hybrid", "adaptive", a) for a in run.attacks]
    for outcome in (run.clean("hybrid"), *attacked):
        assert outcome is not None
        sure = np.where(run.label == 1, outcome.score, 1 - outcome.score)
        least = np.where(run.label == 1, worst.score, 1 - worst.score)
        assert (least <= sure + 1e-12).all()


def test_worst_case_counts_images_that_are_wrong_when_left_alone(full):
    run = load_run(full)
    worst = run.worst("hybrid")
    assert worst is not None
    image = np.flatnonzero(worst.predicted == run.label)[0]
    run.clean("hybrid").predicted[image] = 1 - run.label[image]
    now = run.worst("hybrid")
    assert now is not None
    assert [*np.flatnonzero(now.predicted != worst.predicted)] == [image]


def test_records_are_matched_by_example_whatever_their_order(full, tmp_path):
    shuffled = make_run(tmp_path / "full")
    rows = pq.read_table(full / "predictions.parquet").num_rows
    order = np.random.default_rng(0).permutation(rows)
    edit(shuffled, lambda table: table.take(order))
    first, second = (as_csv(run_tables.headline_table(load_run(p))) for p in (full, shuffled))
    assert first == second


def test_no_defended_number_without_its_adaptive_partner(tmp_path):
    path = make_run(tmp_path / "x", images=40, patients=20, optional=False)
    before = load_run(path)
    assert before.get("autoencoder", "oblivious", "pgd") is not None
    assert before.withheld() == []

    def without(table):
        gone = {"defense": "autoencoder", "threat_model": "adaptive", "evaluation": "pgd"}
        keep = [any(row[k] != v for k, v in gone.items()) for row in table.to_pylist()]
        return table.filter(pa.array(keep))

    edit(path, without)
    run = load_run(path)
    assert run.get("autoencoder", "oblivious", "pgd") is None
    assert run.get("autoencoder", "transfer", "pgd") is None
    assert run.get("autoencoder", "oblivious", "fgsm") is not None
    assert run.withheld() == ["autoencoder pgd"]
    shown = [row[:2] for row in run_tables.results_table(run).rows]
    assert ("autoencoder", "pgd") not in shown
    assert ("hybrid", "pgd") in shown
    assert "autoencoder pgd: withheld" in " ".join(run_page.warnings(run))


def test_first_screen_warns_of_few_images_by_itself(tmp_path, full):
    few = load_run(make_run(tmp_path / "few", images=12, patients=6, defenses=["base"]))
    assert run_page.trust(few).kind == "bad"
    text = " ".join(run_page.trust(few).text)
    assert "12 test images are too few" in text
    assert "3 benign and 3 malignant patients" in text
    enough = run_page.trust(load_run(full))
    assert enough.text[0] == "Yes, with warnings."
    assert "22 pass, 2 warn, 0 fail" in enough.text[1]


def test_first_screen_repeats_the_headline_of_the_self_checks(tmp_path):
    reason = "not to be trusted, because check 5 fails for hybrid"
    run = load_run(make_run(tmp_path / "x", headline=reason, defenses=["base"]))
    card = run_page.trust(run)
    assert (card.kind, card.text[0].lower()) == ("bad", f"{reason}.")
    assert "1 fail" in card.text[-1]
    run.checks = None
    assert run_page.trust(run).text[0] == "The self-checks have not been run."
    assert run_page.trust(run).kind != "good"


def test_best_defence_needs_a_significant_lead(tmp_path):
    run = load_run(make_run(tmp_path / "x", defenses=["base", "adversarial"]))
    pairs = comparison.compare(run)
    sentences = comparison.conclusion(run, pairs)
    assert sentences[0] == "adversarial is best."
    assert ", significant" in sentences[1]
    assert comparison.is_best_significant(run, pairs)
    tie = load_run(make_run(tmp_path / "y", defenses=["base", "autoencoder"]))
    pairs = comparison.compare(tie)
    assert comparison.conclusion(tie, pairs)[0] == "None can be called best."
    assert not comparison.is_best_significant(tie, pairs)


def with_correct(run: RunRecords, base: np.ndarray, other: np.ndarray) -> RunRecords:
    """Makes these images correct, (n,) bool, clean and under every attack."""
    for key, outcome in run.outcomes.items():
        predicted = np.where(base if key[0] == "base" else other, run.label, 1 - run.label)
        run.outcomes[key] = type(outcome)(predicted.astype(float), predicted)
    return run


def test_many_images_of_few_patients_are_not_significant(tmp_path):
    path = make_run(tmp_path / "x", images=160, patients=8, defenses=["base", "adversarial"])
    run = load_run(path)
    # The other is better on every image of two patients, and on nothing else.
    gained = np.isin(run.group, ["patient-000", "patient-001"])
    pair = comparison.compare(with_correct(run, ~gained, np.full(160, True)))[0]
    assert pair.p_holm < 0.001  # 40 to 0, if images were independent
    assert not pair.significant
    run.group = run.example  # now each image is a patient
    del run.weights
    assert comparison.compare(run)[0].significant


def test_p_values_are_adjusted_over_the_whole_table(full):
    pairs = comparison.compare(load_run(full))
    assert len(pairs) == 12  # 6 pairs, attacked and clean
    p = [pair.p for pair in pairs]
    assert [pair.p_holm for pair in pairs] == holm(p)
    assert any(0.001 < pair.p < pair.p_holm for pair in pairs)


def test_the_interval_is_by_patient_where_patients_repeat(full):
    run = load_run(full)
    right = run.clean("base").predicted == run.label
    assert "resampling the 40 patients" in run_tables.interval_note(run)
    by_patient = run_tables.headline_table(run).rows[0][1]
    share = cluster_bootstrap(lambda w: w @ right / w.sum(axis=1), run.group)
    assert by_patient == Estimate(right.mean(), share, "R")
    alone = load_run(full)
    alone.group = alone.example
    assert "a patient (group) of its own" in run_tables.interval_note(alone)
    by_image = run_tables.headline_table(alone).rows[0][1]
    assert by_image == Estimate(right.mean(), wilson_interval(int(right.sum()), len(right)), "W")


def test_subgroups_are_their_own_rows_and_sum_to_all(full):
    run = load_run(full)
    for by in ("magnification", "subtype"):
        table = run_tables.subgroup_table(run, by)
        assert table is not None
        rows: list[Any] = [row for row in table.rows if row[3] == "base"]
        assert sum(row[1] for row in rows) == len(run.label)
        clean = sum(row[1] * row[4].value for row in rows)
        assert clean == pytest.approx((run.clean("base").predicted == run.label).sum())
    run.magnification[:] = 40
    assert run_tables.subgroup_table(run, "magnification") is None


def test_attributes_of_a_table_are_subgroups(full):
    run = load_run(full)
    sites = {id_: "AB"[i % 2] for i, id_ in enumerate(run.example.tolist())}
    ages = {id_: str(i) for i, id_ in enumerate(run.example.tolist())}
    run.splits = {**run.splits, "attributes": {"site": sites, "age": ages}}
    table = run_tables.subgroup_table(run, "site")
    assert table is not None
    right = run.clean("base").predicted == run.label
    for row in table.rows:
        inside = np.array([sites[id_] == row[0] for id_ in run.example.tolist()])
        assert row[1] == inside.sum()
        if row[3] == "base":
            assert isinstance(row[4], Estimate)
            assert row[4].value == right[inside].mean()
    assert run_tables.subgroup_table(run, "age") is None  # a number is no subgroup


def test_curves_keep_their_axes_apart(full):
    run = load_run(full)
    lines = run.curves_along("epsilon")
    assert [line.defense for line in lines] == run.defenses
    assert lines[0].x.tolist() == [0, 0.01, 0.02, 0.03, 0.04, 0.05, 1]
    assert run.curves_along("num_steps")[0].x.tolist() == [1, 2, 5, 10, 20, 40]
    rows = [
        r["predicted"] == r["label"]
        for r in pq.read_table(full / "curves.parquet").to_pylist()
        if (r["defense"], r["epsilon"], r["num_steps"]) == ("base", 0.02, 10)
    ]
    assert lines[0].accuracy[2] == pytest.approx(np.mean(rows))
    assert lines[0].n == len(rows) == 64


def test_pictures_show_the_predictions(full):
    run = load_run(full)
    assert run.pictures is not None
    assert prediction(run, 1, 0.2) == ("benign 0.800: wrong", WRONG)
    assert prediction(run, 1, 0.8) == ("malignant 0.800: correct", CORRECT)
    assert prediction(run, 0, 0.2) == ("benign 0.800: correct", CORRECT)
    assert choose(np.array([0, 0, 0, 1, 0, 1])) == [0, 1, 3, 5]
    assert choose(np.array([1, 1, 1])) == [0, 1, 2]
    kept = ("images", "label", "epsilon", "attack")
    run.pictures = {k: v for k, v in run.pictures.items() if k in kept or k.startswith("hybrid")}
    (drawn,) = panels(run)
    assert isinstance(drawn, Picture)
    assert "16.7 times as strong" in drawn.caption  # 1 / (2 · 0.03)
    run.pictures = None
    assert isinstance(panels(run)[0], Omitted)


def test_figures_are_drawn_only_where_there_is_something(full):
    run = load_run(full)
    run.outcomes = {k: v for k, v in run.outcomes.items() if k[2] == "clean"}
    run.__dict__.pop("attacks", None)
    run.curves, run.training = None, []
    left = [f.name for f in figures(run) if isinstance(f, Omitted)]
    assert left == [
        "Accuracy by attack", "Accuracy against ε", "Accuracy against steps", "Training curves",
    ]  # fmt: skip
    assert comparison.conclusion(run, comparison.compare(run)) == (
        "Nothing was attacked, so no defence can be called best.",
    )


def test_robustness_curves_are_a_png_of_one_run_with_curves(tmp_path):
    path = make_run(tmp_path / "x", images=40, patients=20, defenses=["base"])
    write_report([path], tmp_path / "out", png=True)
    content = (tmp_path / "out" / "figures" / "robustness_curves.png").read_bytes()
    assert content == robustness_curves(load_run(path))  # nothing of time or machine in it
    with PIL.Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("PNG", (1410, 540))
    other = make_run(tmp_path / "y", images=38, patients=19, defenses=["base"])
    with pytest.raises(UserError, match="the PNG is of one run"):
        write_report([path, other], tmp_path / "out", png=True)
    run = load_run(path)
    run.curves = None
    with pytest.raises(UserError, match="no accuracy against ε; run with"):
        robustness_curves(run)


def test_self_checks_are_summed_up_by_their_worst_verdict(full):
    run = load_run(full)
    assert run.checks is not None
    run.checks["checks"][9]["verdict"] = "fail"  # of check 5, hybrid, after a pass of base
    table = run_tables.checks_summary(run)
    assert table is not None
    assert [row[0] for row in table.rows] == [str(n) for n in range(1, 13)]
    assert [row[2:4] for row in table.rows[3:7]] == [
        ("all", "pass"), ("hybrid", "fail"), ("all", "pass"), ("all", "warn"),
    ]  # fmt: skip
    full_table = run_tables.checks_table(run)
    assert full_table is not None
    assert len(full_table.rows) == 24


def test_a_split_without_known_patients_never_says_patient_level(tmp_path):
    path = make_run(tmp_path / "x", optional=False)
    known = load_run(path)
    assert "patient-level split" in run_page.lead(known)
    done = "image: patients unknown"
    (path / "splits.json").write_text(json.dumps({"asked": "patient", "done": done, "notes": []}))
    run = load_run(path)
    headline = run_tables.headline_table(run)
    assert "split by image: patients unknown" in run_page.lead(run)
    assert "patient-level" not in run_page.lead(run)
    cards = run_page.cards(run, comparison.compare(run), headline)
    assert cards[0].text[0].startswith("Split by image: patients unknown")
    assert any("patients unknown" in warning for warning in run_page.warnings(run))
    assert all(row[-2:] == (None, None) for row in headline.rows)
    assert "resampling the" not in run_tables.interval_note(run)
