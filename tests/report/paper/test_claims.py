"""The paper's conclusions on runs with a known outcome, and pooled folds."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from medadv_jax.evaluation.statistics import mean_sd
from medadv_jax.report import write_report
from medadv_jax.report.aggregate import make_groups, pool
from medadv_jax.report.paper.claims import (
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDABLE,
    claims_table,
    judge_claim,
)
from medadv_jax.report.paper.evidence import CLEAN, Contrast, Evidence, Term, View
from medadv_jax.report.paper.sentences import CLAIMS, NETWORKS
from medadv_jax.report.read_runs import load_run
from tests.helpers.synthetic_run import edit, make_run


def set_correct(path, share, defense, threats=("oblivious", "adaptive", "none"), evaluations=()):
    """Makes the first `share` of the images correct in some evaluations, the others wrong."""

    def change(table):
        names = table["example"].to_pylist()
        order = {name: i for i, name in enumerate(sorted(set(names)))}
        cut = share * len(order)
        columns = (table[c].to_pylist() for c in ("defense", "threat_model", "evaluation"))
        predicted = []
        for name, d, t, e, label, old in zip(
            names, *columns, table["label"].to_pylist(), table["predicted"].to_pylist(), strict=True
        ):
            mine = d == defense and t in threats and (not evaluations or e in evaluations)
            predicted.append((label if order[name] < cut else 1 - label) if mine else old)
        place = table.column_names.index("predicted")
        return table.set_column(place, "predicted", pa.array(predicted, pa.int32()))

    edit(path, change)


def paper_runs(tmp_path, dataset="breakhis", networks=NETWORKS, seeds=(0,), **settings):
    paths = []
    for network in networks:
        for seed in seeds:
            path = make_run(
                tmp_path / f"{network}-{seed}", dataset=dataset, model=network, seed=seed,
                optional=False, **settings,
            )  # fmt: skip
            # All networks have the same accuracies.
            for defense in ("adversarial", "autoencoder", "hybrid"):
                set_correct(path, 1.0, defense, ("none",))
            set_correct(path, 0.9, "base", ("none",))
            set_correct(path, 0.1, "base", ("adaptive",))
            set_correct(path, 0.6, "adversarial", ("adaptive",))
            set_correct(path, 0.8, "autoencoder", ("oblivious",))
            set_correct(path, 0.2, "autoencoder", ("adaptive",))
            set_correct(path, 0.6, "hybrid", ("oblivious", "adaptive"))
            paths.append(path)
    return paths


def claim(text, dataset="breakhis"):
    (found,) = [c for c in CLAIMS if c.text.startswith(text) and dataset in c.datasets]
    return found


def judged(paths, text, view, dataset="breakhis"):
    evidence = Evidence(make_groups([load_run(path) for path in paths]))
    return judge_claim(claim(text, dataset), evidence, view)


def test_a_conclusion_may_hold_for_the_oblivious_attacker_but_not_for_the_adaptive(tmp_path):
    paths = paper_runs(tmp_path)
    for path in paths:  # the weakest attack does not count where the worst does
        set_correct(path, 0.5, "autoencoder", ("adaptive",), ("fgsm",))
    text = "The autoencoder withstands the attacks better"
    naive, adaptive = (judged(paths, text, view) for view in View)
    assert naive.verdict == REPRODUCED
    assert adaptive.verdict == NOT_REPRODUCED
    assert "0.200 (" in naive.number
    assert "−0.400 (" in adaptive.number
    same = judged(paths, "The hybrid withstands the attacks better than adversarial", View.WORST)
    assert same.verdict == NOT_REPRODUCED  # it is as good as adversarial training, not better
    assert (
        judged(paths, "Every undefended network loses accuracy", View.PAPER).verdict == REPRODUCED
    )
    below = judged(paths, "The undefended InceptionV3 falls", View.PAPER)
    assert below.verdict == NOT_REPRODUCED
    assert "0.03 − inception_v3: −0.07" in below.number


def test_one_network_against_a_conclusion_is_enough_and_a_missing_one_leaves_it_open(tmp_path):
    text = "The autoencoder withstands the attacks better"
    some = paper_runs(tmp_path, networks=NETWORKS[:3])
    found = judged(some, text, View.PAPER)
    assert found.verdict == UNDECIDABLE
    assert found.number.startswith("inception_v3 was not run; 3 of 4 hold, the smallest vgg16: 0.2")
    set_correct(some[0], 0.3, "autoencoder", ("oblivious",))
    found = judged(some, text, View.PAPER)
    assert found.verdict == NOT_REPRODUCED
    assert found.number.startswith("vgg16: −0.300 (")
    set_correct(
        some[0], 0.61, "autoencoder", ("oblivious",)
    )  # two images: within the interval of 0
    found = judged(some, text, View.PAPER)
    assert found.verdict == UNDECIDABLE
    assert found.number.startswith("vgg16: 0.01")


def test_generated_images_and_few_images_decide_nothing(tmp_path):
    text = "Every undefended network loses accuracy"
    few = judged(paper_runs(tmp_path / "few", images=90), text, View.PAPER)
    assert few.verdict == UNDECIDABLE
    assert few.number.startswith("90 test images are too few")
    paths = paper_runs(
        tmp_path / "drawn", config={"data": {"name": "phantoms", "phantom_kind": "histology"}}
    )
    drawn = judged(paths, text, View.PAPER)
    assert drawn.verdict == UNDECIDABLE
    assert drawn.number.startswith("generated images; ")
    page = write_report(paths[:2], tmp_path / "out").read_text(encoding="utf-8")
    assert "The paper&#39;s conclusions: Breast tissue (generated)" in page
    table = (tmp_path / "out" / "tables" / "conclusions_phantoms_histology.csv").read_text()
    assert "not decidable" in table
    assert ",reproduced" not in table


def test_other_metrics_are_those_of_their_definition(tmp_path):
    """Against sklearn and numpy, on the paper's attackers and on the worst."""
    (path,) = paper_runs(tmp_path, networks=("resnet50",))
    run = load_run(path)
    evidence = Evidence(make_groups([run]))

    def value(view, what, metric, defense="autoencoder"):
        term = Term("resnet50", defense, what, metric=metric)
        found = evidence.measure(Contrast("x", term, 0.0), view).value
        assert found is not None
        return found

    outcomes = [run.get("autoencoder", "oblivious", name) for name in run.attacks]
    known = [outcome for outcome in outcomes if outcome is not None]
    labels = run.label
    assert value(View.PAPER, "attacked", "auc") == pytest.approx(
        np.mean([roc_auc_score(labels, o.score) for o in known])
    )
    assert value(View.PAPER, "pgd", "f1") == pytest.approx(f1_score(labels, known[1].predicted))
    worst = run.worst("autoencoder")
    assert worst is not None
    assert value(View.WORST, "attacked", "recall") == pytest.approx(
        recall_score(labels, worst.predicted)
    )
    of_truth = np.where(labels == 1, worst.score, 1 - worst.score)
    assert value(View.WORST, "attacked", "confidence") == pytest.approx(of_truth.mean())
    right = [(run.clean("base").predicted == labels).mean()]
    right += [
        (o.predicted == labels).mean()
        for name in run.attacks if (o := run.get("base", "adaptive", name)) is not None
    ]  # fmt: skip
    assert value(View.PAPER, "attacked", "deviation", "base") == pytest.approx(
        np.std(right, ddof=1)
    )


def test_a_gain_is_compared_with_another_networks_gain(tmp_path):
    paths = paper_runs(tmp_path, dataset="chest_xray")  # all networks gain the same
    text = "InceptionV3 benefits from adversarial training"
    assert judged(paths, text, View.PAPER, "chest_xray").verdict == NOT_REPRODUCED
    set_correct(paths[-1], 0.9, "adversarial", ("adaptive",))  # InceptionV3's
    found = judged(paths, text, View.PAPER, "chest_xray")
    assert (found.verdict, "0.300 (" in found.number) == (REPRODUCED, True)


def test_costs_are_compared_where_they_were_measured(tmp_path):
    paths = paper_runs(tmp_path)
    text = "The autoencoder is lightweight"
    assert judged(paths, text, View.PAPER).verdict == UNDECIDABLE
    for path in paths:
        spent = {"adversarial": {"seconds": 90.5}, "autoencoder": {"seconds": 60.0}}
        (path / "training_cost.json").write_text(json.dumps(spent))
    found = judged(paths, text, View.PAPER)
    assert (found.verdict, found.number) == (REPRODUCED, "vgg16, training seconds: 30.500")
    each = {"adversarial": {"flops": 2e9}, "autoencoder": {"flops": 2.5e9}}
    for path in paths:
        (path / "inference_cost.json").write_text(json.dumps({"classifiers": each}))
    found = judged(paths, "The autoencoder is computationally efficient", View.WORST)
    assert (found.verdict, found.number) == (NOT_REPRODUCED, "vgg16, GFLOPs: −0.500")


def test_over_seeds_the_interval_is_students_t(tmp_path):
    paths = paper_runs(tmp_path, networks=("resnet50",), seeds=(0, 1, 2))
    for path, share in zip(paths, (0.7, 0.8, 0.9), strict=True):
        set_correct(path, share, "autoencoder", ("oblivious",))
    evidence = Evidence(make_groups([load_run(path) for path in paths]))
    term = Term("resnet50", "autoencoder", "attacked")
    measured = evidence.measure(
        Contrast("x", term, Term("resnet50", "adversarial", "attacked")), View.PAPER
    )
    mean, sd = mean_sd([0.1, 0.2, 0.3])
    assert sd is not None
    half = 4.3027 * sd / np.sqrt(3)  # of 2 degrees of freedom
    assert measured.value == pytest.approx(mean)
    assert measured.interval == pytest.approx((mean - half, mean + half), abs=1e-4)


def test_other_test_images_cannot_be_compared(tmp_path):
    paths = paper_runs(tmp_path, networks=("resnet50",))
    paths += paper_runs(tmp_path, networks=("vgg16",), images=140)
    evidence = Evidence(make_groups([load_run(path) for path in paths]))
    terms = (Term(model, "base", CLEAN) for model in ("resnet50", "vgg16"))
    assert evidence.measure(Contrast("x", *terms), View.PAPER).reason == (
        "the runs have different test images"
    )


def test_radii_are_compared_on_the_curves_at_one_radius(tmp_path):
    paths = []
    for epsilon in (0.01, 0.02, 0.03, 0.04, 0.05):
        path = make_run(
            tmp_path / f"{epsilon}", defenses=["base", "adversarial"], images=120,
            config={"attack": {"epsilon": epsilon}},
        )  # fmt: skip
        paths.append(path)
    table = pq.read_table(paths[0] / "curves.parquet")  # trained at 0.01: all wrong at 0.03
    here = pc.equal(table["epsilon"], 0.03)  # pyright: ignore[reportAttributeAccessIssue]
    wrong = pc.subtract(1, table["label"])  # pyright: ignore[reportAttributeAccessIssue]
    column = pc.if_else(here, wrong, table["predicted"])  # pyright: ignore[reportAttributeAccessIssue]
    place = table.column_names.index("predicted")
    pq.write_table(
        table.set_column(place, "predicted", column.cast(pa.int32())), paths[0] / "curves.parquet"
    )
    evidence = Evidence(make_groups([load_run(path) for path in paths]))
    (of_radii,) = [c for c in CLAIMS if c.text.startswith("Of the radii")]
    found = evidence.measure(of_radii.contrasts[0], View.PAPER)
    curves = [load_run(path).curves for path in (paths[2], paths[0])]
    at = [
        np.mean((c["predicted"] == c["label"])[
            (c["defense"] == "adversarial") & (c["epsilon"] == 0.03) & (c["num_steps"] == 10)
        ])
        for c in curves if c is not None
    ]  # fmt: skip
    assert (at[0] > 0.2, at[1]) == (True, 0.0)
    assert found.value == pytest.approx(at[0])
    alone = Evidence(make_groups([load_run(paths[2])]))
    assert "was not run" in alone.measure(of_radii.contrasts[0], View.PAPER).reason


def folds(tmp_path, count=3, images=120):
    paths = []
    for fold in range(count):
        settings = {"data": {"fold": fold, "num_folds": count}}
        path = make_run(
            tmp_path / f"fold{fold}", images=images, defenses=["base"], optional=False,
            config=settings,
        )  # fmt: skip

        def rename(table, fold=fold):
            for column in ("example", "group"):
                names = pc.binary_join_element_wise(  # pyright: ignore[reportAttributeAccessIssue]
                    table[column], pa.scalar(f"fold{fold}"), "-"
                )
                table = table.set_column(table.column_names.index(column), column, names)
            return table

        edit(path, rename)
        set_correct(path, (fold + 1) / 10, "base", ("adaptive",))
        paths.append(path)
    return paths


def test_pooled_folds_hold_each_image_once(tmp_path):
    paths = folds(tmp_path)
    (group,) = make_groups([load_run(path) for path in paths])
    (pooled,) = pool(group)
    assert pooled.run is not None
    assert len(np.unique(pooled.run.example)) == len(pooled.run.example) == 360
    worst = pooled.run.worst("base")
    assert worst is not None
    assert np.mean(worst.predicted == pooled.run.label) == pytest.approx(0.2, abs=0.03)
    write_report(paths, tmp_path / "out")
    text = (tmp_path / "out" / "tables" / "headline_folds_breakhis_0_seed0.csv").read_text()
    low, high = map(float, text.splitlines()[1].split(",")[5:7])
    assert low < 0.2 < high
    measured = Evidence([group]).measure(
        Contrast("x", 0.5, Term("resnet50", "base", "attacked")), View.PAPER
    )
    assert measured.value == pytest.approx(0.3)


def test_incomplete_or_overlapping_folds_are_not_pooled(tmp_path):
    paths = folds(tmp_path)
    (group,) = make_groups([load_run(path) for path in paths[:2]])
    assert [one.reason for one in pool(group)] == ["fold 2 of 3 is missing"]
    twice = paths[1] / "predictions.parquet"
    table = pq.read_table(paths[0] / "predictions.parquet")
    scores = 0.999 * table["score"].to_numpy()  # the same images; with the same bits it is a copy
    place = table.schema.get_field_index("score")
    pq.write_table(table.set_column(place, "score", pa.array(scores, pa.float32())), twice)
    (group,) = make_groups([load_run(path) for path in paths])
    assert [one.reason for one in pool(group)] == ["120 images are in two test folds"]
    page = write_report(paths, tmp_path / "out").read_text(encoding="utf-8")
    assert "not put together: 120 images are in two test folds" in page
    alone = make_run(tmp_path / "alone", images=20, patients=10, optional=False, defenses=["base"])
    assert not pool(make_groups([load_run(alone)])[0])


def test_the_table_has_a_line_for_each_conclusion_on_its_data_set(tmp_path):
    groups = make_groups([load_run(path) for path in paper_runs(tmp_path, networks=("vgg16",))])
    table = claims_table("breakhis", "breakhis", groups)
    assert len(table.rows) == sum("breakhis" in c.datasets for c in CLAIMS)
    assert {row[2] for row in table.rows} <= {REPRODUCED, NOT_REPRODUCED, UNDECIDABLE}
