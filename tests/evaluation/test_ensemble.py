"""Networks of several runs: against formulas, and against the records of the runs themselves."""

import csv
import io
import json
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from medadv_jax import models
from medadv_jax.attacks import make_attack
from medadv_jax.data.loader import load_dataset, make_loader
from medadv_jax.data.splits import Example
from medadv_jax.distributed import put_batch
from medadv_jax.errors import UserError
from medadv_jax.evaluation import ensemble
from medadv_jax.evaluation.ensemble import Ensemble, Member, Trial
from medadv_jax.evaluation.predictions import read_predictions
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Target, evaluation_attacks
from medadv_jax.experiment.run import run as run_experiment
from scripts import evaluate_runs as script
from tests.helpers.formula_case import SIDE, Formula, height, two_logits
from tests.helpers.tiny import TinyNet, read_results, tiny_config, tiny_dataset

PIXELS = np.random.default_rng(0).random((9, SIDE, SIDE, 3)).astype(np.float32)


def tilted(variables, pixels):
    return two_logits(variables["scale"] * height(pixels) + variables["bias"])


def make_member(number, scale, bias, deployed="full"):
    formula: Any = Formula(tilted, lambda pixels: 0.5 + 0.5 * pixels)
    predictor = Predictor(formula)
    variables = {"scale": np.float32(scale), "bias": np.float32(bias)}
    return Member(f"run{number}", "base", predictor, Target(deployed, variables))


@pytest.fixture(scope="module")
def members():
    return (make_member(0, 300, 0.2), make_member(1, 500, -0.1), make_member(2, -100, 0.3, "bare"))


def committee_logits(members, word):
    variables = [member.target.variables for member in members]
    return np.asarray(Ensemble(members).logits(variables, jnp.asarray(PIXELS), word))


def test_votes_are_what_numpy_makes_of_the_members_answers(members):
    single = np.stack([
        jax.nn.softmax(m.predictor.logits(m.target, jnp.asarray(PIXELS))) for m in members
    ])  # fmt: skip
    np.testing.assert_allclose(np.exp(committee_logits(members, "mean")), single.mean(0), rtol=1e-5)
    for word in ("log", "bpda"):
        found = committee_logits(members, word)
        np.testing.assert_allclose(found, np.log(single).mean(0), rtol=1e-4)
    votes = np.eye(2)[single.argmax(2)].mean(0)
    assert {*votes[:, 0].round(2).tolist()} >= {0.33, 0.67}  # they disagree
    majority = committee_logits(members, "majority")
    np.testing.assert_array_equal(majority.argmax(1), votes.argmax(1))
    np.testing.assert_allclose(np.exp(majority), votes, atol=2e-3)


def test_equal_votes_are_decided_by_the_mean_probability(members):
    found = committee_logits(members[1:], "majority")
    mean = committee_logits(members[1:], "mean")
    votes = [m.predictor.logits(m.target, jnp.asarray(PIXELS)).argmax(1) for m in members[1:]]
    equal = np.asarray(votes[0] != votes[1])
    assert equal.sum() > 2
    np.testing.assert_array_equal(found.argmax(1)[equal], mean.argmax(1)[equal])


def test_gradient_goes_through_each_member_as_it_is_deployed(members):
    """The members with a purifier see half of a pixel's change, and with BPDA all of it."""
    variables = [member.target.variables for member in members]

    def gradient(word):
        def total(pixels):
            return Ensemble(members).logits(variables, pixels, word)[:, 0].sum()

        return np.asarray(jax.grad(total)(jnp.asarray(PIXELS)))

    rise = np.asarray(jax.grad(lambda p: height(p).sum())(jnp.asarray(PIXELS)))

    def expected(factor):
        parts = []
        for member, share in zip(members, (factor, factor, 1.0), strict=True):
            scale = float(member.target.variables["scale"])
            answers = member.predictor.logits(member.target, jnp.asarray(PIXELS))
            other = np.asarray(jax.nn.softmax(answers))[:, 1]
            slope = -2 * scale * share * other
            parts.append(slope[:, None, None, None] * rise)
        return np.mean(parts, axis=0)

    np.testing.assert_allclose(gradient("log"), expected(0.5), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradient("bpda"), expected(1.0), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one split; the second has learned at another rate."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        for name, rate in (("one", 0.001), ("two", 0.02)):
            config = tiny_config()
            config.data.cache_dir = str(folder / "cache")
            config.defenses, config.eval.attacks, config.eval.checks = "base", "pgd", False
            config.train.epochs = 1
            config.train.learning_rate, config.attack.epsilon = rate, 0.004
            run_experiment(config, folder / name, Console(file=io.StringIO()))
        yield folder


@pytest.fixture(scope="module")
def together(runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        script.evaluate_runs([runs / "one", runs / "two"], runs / "together")
    return runs


KEYS = ("defense", "threat_model", "evaluation", "example")


def test_own_examples_give_the_records_of_the_run(together):
    table = pq.read_table(together / "together" / "transfer.parquet")
    assert table.schema == ensemble.TRANSFER_SCHEMA
    for run in ("one", "two"):
        own = table.filter(
            (pc.field("run") == run) & pc.field("threat_model").isin(["none", "adaptive"])
        )
        expected = read_predictions(together / run / "predictions.parquet")
        found = {
            tuple(row[k] for k in KEYS): (row["score"], row["predicted"]) for row in own.to_pylist()
        }
        assert len(found) == own.num_rows == expected.num_rows
        for row in expected.to_pylist():
            assert found[tuple(row[k] for k in KEYS)] == (row["score"], row["predicted"])


def test_matrix_is_derived_from_the_records(together):
    lines = [*csv.reader((together / "together" / "transfer.csv").read_text().splitlines())]
    assert [line[0] for line in lines] == ["made on", "clean", "one/base", "two/base"]
    assert lines[0][1:] == ["one/base", "two/base"]
    rows = pq.read_table(together / "together" / "transfer.parquet").to_pylist()
    right = [
        row["label"] == row["predicted"]
        for row in rows
        if (row["source_run"], row["run"], row["threat_model"]) == ("one", "two", "transfer")
    ]
    assert float(lines[2][2]) == pytest.approx(np.mean(right), abs=1e-4)


def test_worst_attack_counts_in_the_matrix(members):
    examples = [Example(f"e{i}", 0, "g", 0, "", "") for i in range(3)]
    right, wrong = [2.0, 0.0], [0.0, 2.0]
    tables = [
        ensemble._row(members[0], members[1], ("transfer", attack, 0.1), examples, np.array(rows))
        for attack, rows in (("fgsm", [right, wrong, right]), ("pgd", [right, right, wrong]))
    ]
    lines = ensemble.transfer_matrix(pa.concat_tables(tables))
    assert lines == [["made on", "run1/base"], ["run0/base", "0.3333"]]


class Marked:
    """Makes examples of its own mark, and is fooled by those of one other alone."""

    def __init__(self, mark, fooled_by, deployed):
        self.mark, self.fooled_by, self.deployed = mark, fooled_by, deployed

    def attack(self, attacks, source, batch, key):
        assert source.gradient == self.deployed  # whose gradients go through all that is deployed
        return jnp.full((len(attacks), *batch["image"].shape), self.mark, jnp.float32)

    def logits(self, target, pixels):
        fooled = pixels.mean(axis=(1, 2, 3)) == self.fooled_by
        return jnp.stack([~fooled, fooled], axis=-1).astype(jnp.float32)


def test_each_member_answers_what_each_other_made():
    predictors: list[Any] = [Marked(2.0, 3.0, "bare"), Marked(3.0, 9.0, "full")]
    pair = [Member(f"run{i}", "base", p, Target(p.deployed, {})) for i, p in enumerate(predictors)]
    batches = make_loader(tiny_dataset(6), range(6), 4, shuffle_seed=None)
    attacks = [make_attack("fgsm", 0.1)]
    done: list[int] = []
    trial = Trial(attacks, tiny_dataset(6), batches, jax.device_put, 0, advance=done.append)
    table = ensemble.transfer_rows(pair, trial)
    assert done == [4, 2]
    fooled = {(row["source_run"], row["run"]) for row in table.to_pylist() if row["predicted"] == 1}
    assert fooled == {("run1", "run0")}
    assert table.num_rows == 6 * (2 + 4)


class Worded(Predictor):
    """Makes examples of the number of a gradient, and is fooled by those of one."""

    words, fooled_by = ("mean", "log", "bpda"), ""

    def attack(self, attacks, source, batch, key, penalty=None):
        assert key == jax.random.key(7)
        mark = 2.0 + self.words.index(source.gradient)
        return jnp.full((len(attacks), *batch["image"].shape), mark, jnp.float32)

    def logits(self, target, pixels):
        fooled = pixels.mean(axis=(1, 2, 3)) == 2.0 + self.words.index(self.fooled_by)
        return jnp.stack([~fooled, fooled], axis=-1).astype(jnp.float32)


@pytest.mark.parametrize("word", Worded.words)
def test_worst_of_the_gradients_counts_in_votes(word, members, monkeypatch):
    monkeypatch.setattr(ensemble, "Predictor", type("Fooled", (Worded,), {"fooled_by": word}))
    dataset, attacks = tiny_dataset(6), [make_attack("fgsm", 0.1), make_attack("bim", 0.1)]
    for whom, words in ((members, Worded.words), (members[2:], ("mean", "log"))):
        batches = make_loader(dataset, range(6), 4, shuffle_seed=None)
        trial = Trial(attacks, dataset, batches, jax.device_put, 7)
        table = ensemble.ensemble_rows(whom, trial)
        assert table.num_rows == 2 * 3 * 6  # votes × (clean and attacks) × images
        for row in table.to_pylist():  # BPDA is for those who have a purifier
            fooled = word in words and row["evaluation"] != "clean"
            assert row["label"] == 1 or row["predicted"] == fooled


def test_twins_vote_as_each_of_them(runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        config, test, made = ensemble.load_runs([runs / "one"])
        (member,) = ensemble.load_members([runs / "one"], made)
    dataset = load_dataset(config.data)
    indices = [i for i, example in enumerate(dataset.examples) if example.id in test]
    trial = Trial(
        evaluation_attacks(config), dataset,
        make_loader(dataset, indices, made[0].eval_batch(), shuffle_seed=None),
        lambda batch: put_batch(made[0].mesh, batch), config.seed, config.attack.loop,
    )  # fmt: skip
    table = ensemble.ensemble_rows([member, member], trial)
    expected = read_predictions(runs / "one" / "predictions.parquet").to_pylist()
    for vote in ensemble.VOTES:
        mine = table.filter(pc.field("defense") == f"base/{vote}").to_pylist()
        found = {(r["threat_model"], r["evaluation"], r["example"]): r for r in mine}
        assert len(found) == len(mine) == len(expected)
        for row in expected:
            other = found[row["threat_model"], row["evaluation"], row["example"]]
            assert other["predicted"] == row["predicted"]
            if vote == "mean":  # the second of two gradients may find a little more
                assert other["score"] == pytest.approx(row["score"], abs=2e-3)


def test_votes_are_kept_as_a_run_keeps_its_predictions(together):
    folder = together / "together"
    table = read_predictions(folder / "predictions.parquet")
    rows = read_results(folder / "results.csv")
    assert [(row["defense"], row["evaluation"]) for row in rows] == [
        (f"base/{vote}", name) for vote in ensemble.VOTES for name in ("clean", "pgd")
    ]
    assert {row["model"] for row in rows} == {"committee of 2"}
    assert table.num_rows == 4 * int(rows[0]["n"])
    content = json.loads((folder / "runs.json").read_text())
    assert [path.split("/")[-1] for path in content["runs"]] == ["one", "two"]
    assert content["images"] == int(rows[0]["n"])


def test_where_images_lie_and_how_they_are_augmented_may_differ(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "resnet50", TinyNet)
    ignored = shutil.ignore_patterns("checkpoints")
    folder = shutil.copytree(runs / "two", tmp_path / "two", ignore=ignored)
    content = json.loads((folder / "config.json").read_text())
    content["config"]["data"]["dir"] = "elsewhere"
    content["config"]["data"]["augment"]["shift"] = 0.25
    (folder / "config.json").write_text(json.dumps(content))
    _, _, made = ensemble.load_runs([runs / "one", folder])
    assert len(made) == 2


def test_a_run_of_an_earlier_version_is_evaluated(runs, tmp_path, monkeypatch):
    """Its config lacks later fields, and has others under their old name."""
    monkeypatch.setitem(models.MODELS, "resnet50", TinyNet)
    folder = shutil.copytree(
        runs / "two", tmp_path / "two", ignore=shutil.ignore_patterns("checkpoints")
    )
    content = json.loads((folder / "config.json").read_text())
    del content["config"]["deterministic"], content["config"]["eval"]["images"]
    content["config"]["model"]["forms"] = content["config"]["model"].pop("conv_impl")
    (folder / "config.json").write_text(json.dumps(content))
    config, _, _ = ensemble.load_runs([folder, runs / "one"])
    expected, _, _ = ensemble.load_runs([runs / "one"])
    assert config.to_dict()["model"] == expected.to_dict()["model"]
    assert (config.deterministic, config.eval.images) == (False, 0)


def test_runs_of_one_name_are_told_apart_by_their_folders(runs, tmp_path):
    ignored = shutil.ignore_patterns("checkpoints")
    folders = [shutil.copytree(runs / "one", tmp_path / n / "x", ignore=ignored) for n in "ab"]
    made: Any = [SimpleNamespace(target=lambda defense: None, predictor=None)] * 2
    names = [member.run for member in ensemble.load_members(folders, made)]
    assert names == [str(folder) for folder in folders]
    other = shutil.copytree(folders[1], tmp_path / "y", ignore=ignored)
    assert [m.run for m in ensemble.load_members([folders[0], other], made)] == ["x", "y"]


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    def changed(name, change):
        folder = tmp_path / name
        shutil.copytree(runs / "two", folder, ignore=shutil.ignore_patterns("checkpoints"))
        change(folder)
        return folder

    def other_radius(folder):
        content = json.loads((folder / "config.json").read_text())
        content["config"]["attack"]["epsilon"] = 0.02
        (folder / "config.json").write_text(json.dumps(content))

    def other_images(folder):
        content = json.loads((folder / "splits.json").read_text())
        content["test"] = content["validation"]
        (folder / "splits.json").write_text(json.dumps(content))

    def another_defense(folder):
        content = json.loads((folder / "config.json").read_text())
        content["config"]["defenses"] = "base,adversarial"
        (folder / "config.json").write_text(json.dumps(content))

    for folder, text in (
        (tmp_path, "config.json is missing"),
        (changed("unfinished", another_defense), "adversarial is not evaluated yet"),
        (changed("radius", other_radius), "config.attack.epsilon=0.02, and 0.004 in"),
        (changed("images", other_images), "tests other images"),
        (changed("begun", lambda f: (f / "predictions.parquet").unlink()), "predictions.parquet"),
    ):
        with pytest.raises(UserError, match=text):
            ensemble.load_runs([runs / "one", folder])
    with pytest.raises(UserError, match="no run"):
        script.evaluate_runs([], tmp_path / "out")
    assert not (tmp_path / "out").exists()
