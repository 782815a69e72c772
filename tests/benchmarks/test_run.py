"""The benchmark counts work as the compiler does, times in turn, and needs few packages."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flops, loading, ours, report, starts, timing
from benchmarks.cases import SUITES, Case, Job, all_cases
from benchmarks.ours import case_config, make_images
from medadv_jax.attacks import run_attacks
from medadv_jax.attacks.from_config import attack_from_config
from medadv_jax.classifier import Classifier
from medadv_jax.data.loader import make_loader
from medadv_jax.defenses import get_defense
from medadv_jax.models import create_model
from medadv_jax.training.optimizer import make_optimizer
from medadv_jax.training.state import abstract_state
from medadv_jax.training.step import make_train_step
from tests.helpers.tiny import TinyNet

SIZE, BATCH = 32, 4
CASE = Case("attack", "pgd", "resnet50", SIZE, BATCH, "float32", num_steps=2)

# What a bare GPU box does not have, or need not have; flax itself needs rich and Orbax.
BLOCKED = (
    "torch,torchvision,torchattacks,foolbox,art,grain,tensorflow,tensorflow_datasets,"
    "array_record,pyarrow,h5py,sklearn,tqdm,matplotlib,tensorboardX,PIL"
)
DRIVER = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # its import raises ImportError
import flax.linen as nn
import benchmarks.run
from benchmarks import ours, timing
from benchmarks.cases import all_cases, TASKS

class Net(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), (2, 2))(images))
        return nn.Dense(2)(hidden.mean((1, 2)))

ours.create_model = lambda *arguments, **options: Net()
place = dict(model="resnet50", image_size=8, batch=4, precision="float32", devices=1)
cases = all_cases(TASKS, ("pgd", "all"), 2, **place)
made = ours.Ours(cases[0])
for case in cases:
    (timed,) = timing.measure([made.job(case)], 1, lambda job, error: print(job.case, error))
    print(case.title, timed.median > 0, timed.compile_seconds > 0)
"""


@pytest.mark.parametrize(("model", "size"), [("resnet50", 64), ("vgg16", 32), ("inception_v3", 75)])
def test_counts_are_the_compilers(model: str, size: int) -> None:
    check = flops.compiler_check(model, size)
    assert check["within"], check


def _compiled_flops(function: Any, *arguments: Any) -> float:
    found = jax.jit(function).lower(*arguments).cost_analysis()
    assert found is not None
    return found["flops"]


def test_count_of_an_attack_is_the_compilers() -> None:
    classifier = Classifier(create_model("resnet50", conv_impl="plain"))
    variables = jax.eval_shape(lambda key: classifier.init(key, SIZE), jax.random.key(0))
    images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    attack = attack_from_config(case_config(CASE), "pgd", CASE.num_steps)

    def run(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        key, logits_fn = jax.random.key(0), classifier.logits_fn(variables)
        return run_attacks([attack], logits_fn, images, labels, key, loop="unrolled")

    theirs = _compiled_flops(run, variables, images, labels)
    assert theirs / flops.case_flops(CASE) == pytest.approx(1.0, abs=flops.TOLERANCE)


@pytest.mark.parametrize("attack", ["bim", "all"])
def test_count_of_an_adversarial_step_is_the_compilers(attack: str) -> None:
    case = dataclasses.replace(CASE, task="adversarial_step", attack=attack)
    config, mesh = case_config(case), jax.make_mesh((1,), ("data",))
    config.attack.loop = "unrolled"  # the compiler counts the body of a loop once
    classifier = Classifier(create_model("resnet50", conv_impl="plain"))
    optimizer = make_optimizer(1e-3, "constant", 1)
    state = abstract_state(classifier, optimizer, mesh, SIZE)
    objective = get_defense("adversarial").make_objective(config)
    step = make_train_step(classifier, optimizer, objective, config.data.augment)
    shapes = {"image": ((BATCH, SIZE, SIZE, 3), "uint8"), "label": ((BATCH,), "int32")}
    shapes["mask"] = ((BATCH,), "float32")
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    analysis = step.lower(state, batch, jax.random.key(0)).cost_analysis()  # pyright: ignore
    # Adam weighs something beside a batch as small as this.
    adam = _compiled_flops(optimizer.update, state.params, state.opt_state)
    share = (analysis["flops"] - adam) / flops.case_flops(case)
    assert share == pytest.approx(1.0, abs=flops.TOLERANCE)


def test_jobs_run_in_turn_and_a_failing_one_is_left_out() -> None:
    order, failures = [], []

    def job(name: str, fails: bool = False) -> Job:
        def run() -> None:
            order.append(name)
            if fails:
                raise MemoryError("no memory")

        return Job(CASE, name, run, wait=lambda result: None)

    timing._LONG, before = 0.0, timing._LONG
    try:
        jobs = [job("a"), job("broken", fails=True), job("b")]
        timed = timing.measure(jobs, 3, lambda job, error: failures.append(job.name))
    finally:
        timing._LONG = before
    assert order == ["a", "a", "broken", "b", "b", *["a", "b"] * 3]
    assert failures == ["broken"]
    assert [len(each.seconds) for each in timed] == [3, 3]


def test_short_runs_are_repeated_within_a_timed_one() -> None:
    calls = []
    job = Job(CASE, "short", lambda: calls.append(0), wait=lambda result: None)
    (timed,) = timing.measure([job], 1, lambda job, error: None)
    assert len(calls) > 100
    assert timed.median < 1e-3


def test_a_line_is_fitted_and_a_bend_shows() -> None:
    straight = timing.fit_line([1, 2, 4, 8], [3 + 2 * x for x in (1, 2, 4, 8)])
    assert (straight["slope"], straight["intercept"]) == pytest.approx((2.0, 3.0))
    assert straight["residual"] == pytest.approx(0.0, abs=1e-9)
    bent = timing.fit_line([1, 2, 4, 8], [1, 2, 4, 16])
    assert bent["residual"] > 0.2


def test_a_loader_that_is_slower_than_the_steps_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any, **options: Any) -> Any:
        for batch in make_loader(*arguments, **options):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(ours, "create_model", lambda *arguments, **options: TinyNet())
    monkeypatch.setattr(loading, "LEAST_IMAGES", 24)
    case = Case("clean_step", None, "resnet50", SIZE, 8, "float32", num_steps=0)
    monkeypatch.setattr(loading, "make_loader", slowly)
    found = loading.measure_loader(case, 1)
    assert found["loader_images_per_second"] < 8 / 0.2
    assert found["ratio"] < 1
    assert found["waiting"] > 0.5


def test_only_a_whole_line_says_that_a_stage_has_begun(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert starts._begun(metrics) == set()
    metrics.write_text('{"defense": "base", "step": 1}\n{"defense": "adversarial", "ste')
    assert starts._begun(metrics) == {"base"}


def _record(implementation: str, variant: str | None, seconds: list[float], group: int = 0) -> dict:
    place = {name: getattr(CASE, name) for name in report._PLACE}
    return place | {
        "implementation": implementation,
        "variant": variant,
        "seconds": seconds,
        "group": group,
    }


def test_the_peers_faster_variant_counts_against_ours_of_the_same_alternation() -> None:
    records = [
        _record("medadv_jax", None, [1.0, 2.0, 9.0]),
        _record("pytorch", "eager", [3.0, 4.0, 5.0]),
        _record("pytorch", "compiled", [2.0, 3.0, 3.0]),
        _record("art", None, [20.0]),
        _record("medadv_jax", None, [100.0], group=1),  # a busier time, and no peer
        _record("medadv_jax", None, [6.0]) | {"task": "adversarial_step"},
        _record("pytorch", "eager", [3.0]) | {"task": "adversarial_step"},
    ]
    ratios = report.ratios(records)
    found = {each["peer"]: each for each in ratios if each["task"] == "attack"}
    assert found["pytorch"]["ratio"] == pytest.approx(1.5)
    assert found["pytorch"]["variant"] == "compiled"
    assert found["art"]["ratio"] == pytest.approx(10.0)
    assert [each["ratio"] for each in ratios if each["task"] == "adversarial_step"] == [0.5]
    assert report.geometric_means([{"peer": "x", "ratio": r} for r in (1.0, 4.0)]) == {"x": 2.0}


def test_suites_hold_the_cases_of_the_claim() -> None:
    cpu = {case for group in SUITES["cpu"]() for case in group.cases}
    wanted = {
        Case(task, "pgd", model, size, batch, "float32")
        for task in ("attack", "adversarial_step")
        for model in ("resnet50", "vgg16")
        for size, batch in ((64, 32), (224, 8))
    }
    assert cpu == wanted
    gpu = {case for group in SUITES["gpu"]() for case in group.cases}
    for model in ("resnet50", "vgg16", "vgg19", "inception_v3"):
        for batch in (32, 128):
            for precision in ("float32", "bfloat16"):
                assert Case("attack", "pgd", model, 224, batch, precision) in gpu
                assert Case("adversarial_step", "pgd", model, 224, batch, precision) in gpu


def test_every_task_runs_without_the_packages_of_a_full_installation() -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", DRIVER, BLOCKED]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    place = {"model": "m", "image_size": 1, "batch": 1, "precision": "float32", "devices": 1}
    tasks = ("clean_step", "attack", "adversarial_step", "evaluation")
    titles = [case.title for case in all_cases(tasks, ("pgd", "all"), 2, **place)]
    assert lines == [f"{title} True True" for title in titles]
    assert len(titles) == 5


def test_images_of_a_case_are_the_same_for_everybody() -> None:
    first, second = make_images(CASE), make_images(CASE)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[0].shape == (BATCH, SIZE, SIZE, 3)
