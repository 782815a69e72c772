"""Stopped or killed anywhere, a training goes on to the same bits."""

import copy
import functools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax import interrupts
from medadv_jax.files import atomic_write, remove_leftovers
from medadv_jax.training.checkpoints import Checkpoints
from medadv_jax.training.metric_writer import MetricsWriter
from tests.training.test_trainer import Fit, Parts, assert_trees_close


@pytest.fixture(autouse=True)
def _nothing_asked_for(monkeypatch):
    monkeypatch.setattr(interrupts, "_stop", interrupts._Stop())


@functools.cache
def compiled():
    """One step and one state before it, for all fits."""
    parts = Parts("base")
    state = parts.state()
    parts.state = lambda: jax.tree.map(jnp.copy, state)
    return parts


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The end of three epochs of three steps: state, best, lines."""
    folder = tmp_path_factory.mktemp("whole")
    return *make_fit(folder)(3), lines_of(folder)


def make_fit(folder, minutes=0.0):
    fit = Fit.__new__(Fit)
    fit.folder, fit.parts = folder, copy.copy(compiled())
    fit.parts.config = copy.deepcopy(fit.parts.config)
    fit.parts.config.train.update(log_steps=2, checkpoint_minutes=minutes)
    return fit


def lines_of(folder):
    """The lines of metrics.jsonl, without what no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images/s"} for line in lines]


def after_steps(fit, count, action):
    """Lets `action` happen during step `count` of this process."""
    step, seen = fit.parts.step, []

    def counting(*arguments):
        seen.append(1)
        if len(seen) == count:
            action()
        return step(*arguments)

    fit.parts.step = counting


def ask():
    interrupts._stop.requested = int(signal.SIGTERM)


def goes_on(folder, undisturbed, monkeypatch):
    monkeypatch.setattr(interrupts, "_stop", interrupts._Stop())
    state, best = make_fit(folder)(3)
    assert_trees_close(state, undisturbed[0], rtol=0, atol=0)
    assert best == undisturbed[1]
    assert lines_of(folder) == undisturbed[2]
    assert not (folder / "checkpoints" / "partial").exists()


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9])
def test_stopped_within_an_epoch_goes_on_to_the_same_bits(
    tmp_path, undisturbed, monkeypatch, count
):
    fit = make_fit(tmp_path)
    after_steps(fit, count, ask)
    with pytest.raises(interrupts.Stopped, match=f"epoch {(count + 2) // 3}, after") as caught:
        fit(3)
    assert caught.value.number == signal.SIGTERM
    assert (tmp_path / "checkpoints" / "partial" / str(count)).is_dir()
    goes_on(tmp_path, undisturbed, monkeypatch)


def test_stopped_while_validating_keeps_the_epoch(tmp_path, undisturbed, monkeypatch):
    fit, validate, steps = make_fit(tmp_path), Fit.validate, []

    def stopped(variables):
        found = validate(fit, variables)
        if len(steps) > 3:
            ask()
        interrupts.check()
        return found

    fit.validate = stopped
    for number in range(1, 10):
        after_steps(fit, number, lambda: steps.append(1))
    with pytest.raises(interrupts.Stopped):
        fit(3)
    assert (tmp_path / "checkpoints" / "partial" / "6").is_dir()
    goes_on(tmp_path, undisturbed, monkeypatch)


class Killed(BaseException):
    """Nothing cleans up after it."""


def kill():
    raise Killed


@pytest.mark.parametrize("minutes", [0.0, 1e-9])
def test_killed_within_an_epoch_goes_on_from_the_last_checkpoint(
    tmp_path, undisturbed, monkeypatch, minutes
):
    fit = make_fit(tmp_path, minutes)
    after_steps(fit, 6, kill)
    with pytest.raises(Killed):
        fit(3)
    partial = tmp_path / "checkpoints" / "partial"
    kept = [path.name for path in partial.iterdir()] if partial.exists() else []
    assert kept == (["5"] if minutes else [])
    goes_on(tmp_path, undisturbed, monkeypatch)


def test_a_checkpoint_in_the_epoch_does_not_outlive_the_epochs_end(
    tmp_path, undisturbed, monkeypatch
):
    """The state of a past epoch's middle lies about, as a kill may leave it."""
    fit = make_fit(tmp_path)
    after_steps(fit, 2, ask)
    with pytest.raises(interrupts.Stopped):
        fit(3)
    shutil.copytree(tmp_path / "checkpoints" / "partial", tmp_path / "old")
    monkeypatch.setattr(interrupts, "_stop", interrupts._Stop())
    make_fit(tmp_path)(2)
    (tmp_path / "old").rename(tmp_path / "checkpoints" / "partial")
    goes_on(tmp_path, undisturbed, monkeypatch)


def test_a_checkpoint_that_was_half_deleted_has_no_number(tmp_path, monkeypatch):
    """Superseded checkpoints are renamed first: a kill while they go leaves nothing that counts."""
    state = {"step": np.int32(1), "a": np.arange(3.0, dtype=np.float32)}
    checkpoints = Checkpoints(tmp_path)
    removed = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: removed.append(path))
    for epochs, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
        checkpoints.save(epochs, state, {"accuracy": accuracy, "loss": 1.0})
    checkpoints.close()
    assert {p.name for p in tmp_path.iterdir()} == {"2", "3", ".old"}
    assert removed
    monkeypatch.undo()
    again = Checkpoints(tmp_path)
    assert (again.latest(), again.best()[0]) == (3, 2)
    assert not (tmp_path / ".old").exists()
    again.close()


def test_lines_that_come_again_and_torn_ones_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = ['{"defense": "base", "step": 9}', '{"defense": "hybrid", "step": 2}']
    lost = ['{"defense": "hybrid", "step": 3}', "[]", '{"defense": "hybrid", "st']
    path.write_text("\n".join([*kept, *lost]))
    writer = MetricsWriter(tmp_path)
    writer.rewind("hybrid", 2)
    writer.write("hybrid", 3, {"loss": 1.0})
    writer.close()
    new = '{"defense": "hybrid", "step": 3, "loss": 1.0}'
    assert path.read_text().splitlines() == [*kept, new]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half(text):
        with atomic_write(path) as beside:
            beside.write_text(text)
            kill()

    with pytest.raises(Killed):
        write_half("ne")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    with atomic_write(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    (tmp_path / ".a.txt.123.medadv-tmp").write_text("of a process that was killed")
    for name in (".lock", ".notes.2024", ".viminfo.1"):
        (tmp_path / name).write_text("a user's")
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", ".lock", ".notes.2024", ".viminfo.1"}


def test_whole_files_are_on_disk_before_they_have_their_name(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("sync") or sync(fd))
    path_type = type(tmp_path)
    monkeypatch.setattr(
        path_type, "replace", lambda self, to: order.append("rename") or replace(self, to)
    )
    with atomic_write(tmp_path / "a.txt") as beside:
        beside.write_text("a")
    assert order == ["sync", "rename", "sync"]


def test_devices_do_not_matter_to_what_is_kept(tmp_path):
    """A state is restored where the asking state is placed."""
    fit = make_fit(tmp_path)
    fit(1)
    like = fit.parts.state()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    found = checkpoints.restore(1, like)
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, like)
    checkpoints.close()
