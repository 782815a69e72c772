"""What a reader of a run's page meets first, and the paper's figures that show images."""

import re
from pathlib import Path

import numpy as np
import pytest

from medadv_jax.evaluation.checks.result import NAMES, WHY
from medadv_jax.report import comparison, run_page, run_tables
from medadv_jax.report.paper.drawings import convolution, drawings
from medadv_jax.report.paper.pictures import pictures
from medadv_jax.report.read_runs import load_run
from medadv_jax.report.records import title_of
from medadv_jax.report.run_figures import curve
from medadv_jax.report.style import Omitted, Picture
from medadv_jax.report.tables import Estimate
from tests.helpers.synthetic_run import make_run


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A run with every optional file."""
    return make_run(tmp_path_factory.mktemp("runs") / "full")


def test_the_page_begins_with_a_sentence_from_the_numbers(full):
    run = load_run(full)
    rate = run.summary("base", "adaptive", "worst")
    kept = comparison.attacked_accuracy(run)
    best = max((d for d in kept if d != "base"), key=kept.__getitem__)
    assert rate is not None
    assert rate.attack_success_rate is not None
    text = run_page.summary(run)
    assert f"an attack flips {rate.attack_success_rate:.0%} of the right answers." in text
    assert f"{kept[best]:.0%} of all images are still classified correctly" in text
    for key, outcome in run.outcomes.items():
        if key[:2] == ("base", "adaptive"):
            run.outcomes[key] = type(outcome)(outcome.score, 1 - run.label)
    run.__dict__.pop("_summaries")
    assert run_page.summary(run).startswith("Without a defence an attack flips every right answer.")
    run.outcomes = {k: v for k, v in run.outcomes.items() if k[2] == "clean"}
    for cached in ("attacks", "_summaries"):
        run.__dict__.pop(cached)
    assert run_page.summary(run).startswith("Nothing was attacked")


def test_the_first_card_says_that_images_are_generated(tmp_path):
    path = make_run(
        tmp_path / "x", dataset="phantoms", images=20, patients=10, defenses=["base"],
        optional=False, config={"data": {"phantom_kind": "xray"}},
    )  # fmt: skip
    page = run_page.build(load_run(path))
    assert page.title == "ResNet50 on Chest X-ray (generated)"
    assert "generated" in " ".join(page.cards[0].text)
    assert "phantoms" not in page.html().split("<nav>")[0]
    words = dict(page.legend)
    assert {"base", "ε", "adaptive"} <= {*words}
    assert "hybrid" not in words


def test_names_for_people():
    assert title_of("phantoms_xray") == "Chest X-ray (generated)"
    assert title_of("phantoms_xray_3_classes") == "Chest X-ray (generated), 3 classes"
    assert title_of("my_classes") == "my_classes"


def test_sensitivity_and_specificity_are_those_of_the_confusion_matrix(full):
    run = load_run(full)
    table = run_tables.clinical_table(run, run_tables.metrics_table(run))
    assert table is not None
    (row,) = [r for r in table.rows if r[:2] == ("hybrid", comparison.ATTACKED)]
    worst = run.worst("hybrid")
    assert worst is not None
    sick = run.label == 1
    assert isinstance(row[2], Estimate)
    assert row[2].value == pytest.approx((worst.predicted[sick] == 1).mean())
    assert row[2].method == "R"
    assert row[4:] == ((worst.predicted[sick] == 0).sum(), (worst.predicted[~sick] == 1).sum())


def test_each_self_check_says_why_it_matters_and_the_full_table_is_folded(tmp_path):
    path = make_run(tmp_path / "x", images=40, patients=20, defenses=["base", "hybrid"])
    run = load_run(path)
    summary, every = run_tables.checks_summary(run), run_tables.checks_table(run)
    assert summary is not None
    assert every is not None
    assert [row[5] for row in summary.rows] == [WHY[number] for number in range(1, 13)]
    assert {*WHY} == {*NAMES}
    assert (summary.folded, every.folded) == (False, True)
    html = run_page.build(run).html()
    assert html.index('id="attacked-images"') < html.index('id="self-checks"')
    assert re.search(r"<details><summary>Every self-check</summary>", html)
    drawn = curve(run, "epsilon")
    assert isinstance(drawn, Picture)
    assert "<!-- ε = 1 -->" in drawn.svg  # the text of a label, before its outline
    assert "clip value" not in drawn.svg


def test_attacked_images_are_shown_under_both_attackers(full):
    earlier = pictures(load_run(full), "ResNet50")
    named = [part.name for part in earlier]
    assert named == ["figure_03_full", "figure_12b_pgd_full"]  # one adaptive attack was kept
    run = load_run(full)
    assert run.pictures is not None
    kept = run.pictures
    kept |= {"attacks": np.array(["fgsm", "pgd"]), "first": np.array([0, 1])}
    for defense in run.defenses:
        both = np.stack([kept[f"{defense}/adversarial"][:2]] * 2).astype(np.float16)
        threats = ("adaptive", "oblivious") if f"{defense}/purified" in kept else ("adaptive",)
        for threat in threats:
            kept[f"{defense}/{threat}"], kept[f"{defense}/{threat}_score"] = both, np.zeros((2, 2))
        if f"{defense}/purified" in kept:
            kept[f"{defense}/reconstructed"] = kept["images"][:2]
    drawn = pictures(run, "ResNet50")
    assert [part.name for part in drawn] == [
        "figure_03_full", "figure_02b_autoencoder_full", "figure_02b_hybrid_full",
        "figure_12b_fgsm_full", "figure_12b_pgd_full",
    ]  # fmt: skip
    figure = drawn[-1]
    assert isinstance(figure, Picture)
    assert "Figure 12b, ResNet50 on BreakHis" in figure.caption
    run.pictures = None
    assert isinstance(pictures(run, "ResNet50")[0], Omitted)


def test_the_drawn_convolution_is_right():
    figure = convolution()
    terms, total = figure.caption.split(" is ")[-1].rstrip(".").split(" = ")
    products = [
        int(a) * int(b.strip("()").replace("−", "-"))
        for a, b in (term.split(" × ") for term in terms.split(" + "))
    ]
    assert sum(products) == int(total.replace("−", "-"))
    assert [part.name for part in drawings()] == [
        "figure_01", "figure_02a", "figure_02b", "figure_04",
    ]  # fmt: skip
