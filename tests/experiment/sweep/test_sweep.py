"""Sweeps: where cells run, and what happens when some fail; with a stand-in for main.py."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from medadv_jax.errors import UserError
from medadv_jax.experiment.sweep import run_sweep
from medadv_jax.experiment.sweep.cells import is_finished, reuse_of, saved_config, shared_stages
from medadv_jax.experiment.sweep.grids import ROOT, Grid, make_cells
from medadv_jax.experiment.sweep.launchers import Launcher, visible_devices
from medadv_jax.experiment.sweep.scheduler import BEFORE, DONE, FAILED, Scheduler, explain
from medadv_jax.files import file_lock
from medadv_jax.report.read_runs import read_sweep
from tests.helpers.sweep_cells import DEMO, seeds

# Does what `plan.json`, beside the sweep, says of its cell; the standard library alone is quick.
STAND_IN = """
import json, os, pathlib, signal, sys, time
flags = dict(arg.partition("=")[::2] for arg in sys.argv[1:])
workdir = pathlib.Path(flags["--workdir"])
config, what = json.loads((workdir.parents[1] / "plan.json").read_text())[workdir.name]
workdir.mkdir(exist_ok=True)
for field, value in flags.items():
    if field == "--config.reuse":
        config["reuse"] = value
(workdir / "config.json").write_text(json.dumps({"config": config}))
with (workdir / "starts").open("a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")
if what == "memory":
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
if what == "nan":
    print("a line\\nerror: base: the loss is not finite at step 3", file=sys.stderr)
    sys.exit(2)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "sleep":
    def save(*_):
        time.sleep(0.7)
        (workdir / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (workdir / "pid").write_text(str(os.getpid()))
    time.sleep(60)
(workdir / "report").mkdir(exist_ok=True)
(workdir / "results.csv").write_text("")
(workdir / "report" / "index.html").write_text("")
"""


@pytest.fixture
def main(tmp_path):
    path = tmp_path / "main.py"
    path.write_text(STAND_IN)
    return path


def plan(tmp_path, cells, fates=()):
    fates = [*fates, *["fine"] * (len(cells) - len(fates))]
    content = {c.name: (c.config.to_dict(), fate) for c, fate in zip(cells, fates, strict=True)}
    (tmp_path / "plan.json").write_text(json.dumps(content))


def make_launcher(tmp_path, slots=1, environment=None):
    environment = os.environ if environment is None else environment
    return Launcher("local", slots, tmp_path / "sweep" / "jobs", {}, environment)


def run(tmp_path, cells, main, slots=1, environment=None, **calls):
    launcher = make_launcher(tmp_path, slots, environment)
    scheduler = Scheduler(cells, launcher, tmp_path / "sweep", main, **calls)
    scheduler.run()
    return scheduler.statuses


def starts(cell):
    return (cell.folder / "starts").read_text().splitlines()


def test_failures_stop_nothing_and_only_they_are_tried_again(tmp_path, main):
    cells = seeds(tmp_path, 5)
    plan(tmp_path, cells, ["memory", "fine", "nan", "kill"])
    statuses = run(tmp_path, cells, main, 5)
    assert [s.state for s in statuses] == [FAILED, DONE, FAILED, FAILED, DONE]
    assert statuses[0].reason == (
        "RuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."
    )
    assert statuses[2].reason == "base: the loss is not finite at step 3"
    assert statuses[3].reason.startswith("killed by SIGKILL")
    journal = read_sweep(tmp_path / "sweep")
    assert [row["failure"] for row in journal.values()] == [s.reason for s in statuses]

    plan(tmp_path, cells, ["fine", "fine", "fine", "kill"])
    statuses = run(tmp_path, cells, main, 5)
    assert [s.state for s in statuses] == [DONE, BEFORE, DONE, FAILED, BEFORE]
    assert [len(starts(cell)) for cell in cells] == [2, 1, 2, 2, 1]
    journal = read_sweep(tmp_path / "sweep")
    assert [row["starts"] for row in journal.values()] == [2, 1, 2, 2, 1]
    assert [row["seconds"] is None for row in journal.values()] == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_the_journal_of_an_earlier_version_is_kept(tmp_path, main):
    cells = seeds(tmp_path, 1)
    plan(tmp_path, cells)
    row = {"config": "demo", "fields": {}, "starts": 3, "seconds": 1.0, "bytes": 7, "failure": "no"}
    (tmp_path / "sweep").mkdir()
    journal = {"cells": {cells[0].name: row, "of another grid": row}}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(journal))
    run(tmp_path, cells, main)
    after = read_sweep(tmp_path / "sweep")
    assert after["of another grid"] == row
    found = after[cells[0].name]
    assert (found["starts"], found["bytes"], found["failure"]) == (4, 7, "")
    assert found["fields"] == {"seed": "0"}


def test_a_run_of_another_config_is_not_taken_for_the_cell(tmp_path, main):
    cells = seeds(tmp_path, 1)
    plan(tmp_path, cells)
    run(tmp_path, cells, main)
    assert is_finished(cells[0])
    cells[0].config.train.epochs += 1
    assert not is_finished(cells[0])
    cells[0].config.train.epochs -= 1
    cells[0].config.data.cache_dir = "elsewhere"  # changes no result
    assert is_finished(cells[0])
    (cells[0].folder / "report" / "index.html").unlink()
    assert not is_finished(cells[0])


@pytest.mark.parametrize(
    ("ended", "lines", "reason"),
    [
        (-9, ["error: x"], "killed by SIGKILL; the system does that when memory runs out"),
        (143, [], "killed by SIGTERM"),
        (-11, ["error: x"], "killed by SIGSEGV"),
        (2, ["Error: no", "error: config.x=1: no", "more"], "config.x=1: no"),
        (1, ["  File x", "ValueError: broken", ""], "ValueError: broken"),
        (1, ["something"], "exit code 1: something"),
        (3, [], "exit code 3: it said nothing"),
        (0, ["fine"], "it ended without a report"),
        ("job 7 (TIMEOUT): over its time", [], "job 7 (TIMEOUT): over its time"),
    ],
)
def test_a_failure_is_one_line(ended, lines, reason):
    assert explain(ended, lines) == reason


def test_cells_run_at_once_each_with_a_device_of_its_own(tmp_path, main):
    cells = seeds(tmp_path, 4)
    plan(tmp_path, cells)
    run(tmp_path, cells, main, 0, {**os.environ, "CUDA_VISIBLE_DEVICES": "3,5"})
    assert [starts(cell) for cell in cells[:2]] == [["3"], ["5"]]
    assert all(starts(cell) in (["3"], ["5"]) for cell in cells)
    assert visible_devices({"ROCR_VISIBLE_DEVICES": "1"}) == ("ROCR_VISIBLE_DEVICES", ["1"])

    def variables(slots, slot):
        return make_launcher(tmp_path, slots, {"CUDA_VISIBLE_DEVICES": "3,5"}).variables(slot)

    assert variables(3, 2)["CUDA_VISIBLE_DEVICES"] == "3"
    assert variables(3, 2)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in variables(2, 1)
    assert variables(1, 0)["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_a_cell_alone_sees_what_the_sweep_sees(tmp_path, main, monkeypatch):
    """Submitit hides all devices from a local job that does not ask for some."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cells = seeds(tmp_path, 1)
    plan(tmp_path, cells)
    run(tmp_path, cells, main)
    assert starts(cells[0]) == ["none"]


def test_a_cell_takes_from_an_earlier_one_what_it_would_train_alike(tmp_path, main):
    grid = Grid((DEMO,), axes={"purifier.bottleneck": (64, 128), "attack.epsilon": (0.03, 0.01)})
    cells = make_cells(grid, tmp_path / "sweep")
    first, weaker, other, _ = cells
    assert shared_stages(weaker, first) == ["base"]
    assert shared_stages(other, first) == ["base", "adversarial"]
    assert not shared_stages(*seeds(tmp_path, 2))
    plan(tmp_path, cells, ["nan"])
    statuses = run(tmp_path, cells, main, 4)
    # The first failed before it had trained anything: the second has nothing to take, and so on.
    assert [s.state for s in statuses] == [FAILED, DONE, DONE, DONE]
    assert [(saved_config(cell.folder) or {})["reuse"] for cell in cells] == [""] * 4
    epochs = first.config.train.epochs
    (first.folder / "checkpoints" / "base" / str(epochs)).mkdir(parents=True)
    fresh = make_cells(grid, tmp_path / "new")[2]
    assert reuse_of(fresh, [weaker, first]) == str(first.folder)
    assert reuse_of(other, [first]) == ""  # it has begun without
    plan(tmp_path, cells)
    (other.folder / "config.json").unlink()
    run(tmp_path, cells, main)
    assert (saved_config(other.folder) or {})["reuse"] == str(first.folder)
    assert is_finished(other)


def test_a_cell_waits_for_what_it_can_take(tmp_path, main):
    cells = make_cells(Grid((DEMO,), axes={"purifier.bottleneck": (64, 128)}), tmp_path / "sweep")
    order = []
    plan(tmp_path, cells)
    run(
        tmp_path, cells, main, 2,
        changed=lambda status: order.append((status.cell.name[-3:], status.state)),
    )  # fmt: skip
    assert order == [("=64", "running"), ("=64", DONE), ("128", "running"), ("128", DONE)]


def wait_for(path, seconds=90):
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, path
        time.sleep(0.05)
    return path.read_text()


def is_gone(pid, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


SWEEP = """
import os, pathlib, sys
from rich.console import Console
from medadv_jax import interrupts
from medadv_jax.experiment.sweep import run_sweep
from tests.helpers.sweep_cells import seeds
folder = pathlib.Path(sys.argv[1])
run_sweep.ROOT = folder
interrupts.install()
run_sweep.run_sweep(Console(), seeds(folder, 1), folder / "sweep", 1, "local", [])
"""


@pytest.fixture
def sweep(tmp_path, main):
    """A sweep of one cell that takes long, in a process group of its own."""
    cells = seeds(tmp_path, 1)
    plan(tmp_path, cells, ["sleep"])
    with subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(tmp_path)], cwd=ROOT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            wait_for(cells[0].folder / "pid")
            yield process
        finally:
            process.kill()


def start(tmp_path, console):
    return run_sweep.run_sweep(console, seeds(tmp_path, 1), tmp_path / "sweep", 1, "local", [])


def test_a_killed_sweep_ends_its_cells_and_the_next_start_waits_for_them(
    tmp_path, sweep, monkeypatch
):
    (cell,) = seeds(tmp_path, 1)
    monkeypatch.setattr(run_sweep, "ROOT", tmp_path)
    with pytest.raises(UserError, match=f"process {sweep.pid} on .* is at work in it"):
        start(tmp_path, Console(file=io.StringIO()))
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    assert is_gone((cell.folder / "pid").read_text())
    assert (cell.folder / "saved").exists()

    plan(tmp_path, [cell])
    said = io.StringIO()
    with file_lock(cell.folder / ".lock", "a cell that saves its state"):
        monkeypatch.setattr(run_sweep, "_WAIT_SECONDS", 0.6)
        run_sweep.wait_for_cells(Console(file=said), [cell])
    assert said.getvalue().startswith("waiting for cells of an earlier start")


def test_ctrl_c_lets_cells_save_their_state(tmp_path, sweep):
    (cell,) = seeds(tmp_path, 1)
    os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: submitit's processes get it too
    said = sweep.communicate(timeout=90)[0]
    assert (cell.folder / "saved").exists()
    assert is_gone((cell.folder / "pid").read_text(), 0.1)
    assert said.count("KeyboardInterrupt") <= 1  # that of the sweep, which cli.guard would say


def test_a_cell_ends_when_its_permission_goes(tmp_path, main):
    """It goes with the next start of the sweep, wherever the cell runs."""
    cells = seeds(tmp_path, 1)
    plan(tmp_path, cells, ["sleep"])
    (tmp_path / "sweep").mkdir()
    job = make_launcher(tmp_path).start(
        [str(main), f"--workdir={cells[0].folder}"], tmp_path / "log", 0
    )
    wait_for(cells[0].folder / "pid")
    make_launcher(tmp_path, 2)
    assert job.result() == 143
    assert (cells[0].folder / "saved").exists()


def test_an_interrupted_sweep_stops_its_cells(tmp_path, main):
    cells = seeds(tmp_path, 2)
    plan(tmp_path, cells, ["sleep", "sleep"])

    def interrupt():
        if all((cell.folder / "pid").exists() for cell in cells):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, cells, main, 2, tick=interrupt)
    assert all(is_gone((cell.folder / "pid").read_text(), 0.1) for cell in cells)
    assert all((cell.folder / "saved").exists() for cell in cells)


def test_a_lost_job_and_an_impossible_parameter(tmp_path, main):
    with pytest.raises(UserError, match=r"--launcher=local.*no_such"):
        Launcher("local", 1, tmp_path / "jobs", {"no_such_parameter": 1}, {})
    with pytest.raises(UserError, match=r"--launcher=slurm.*srun"):
        Launcher("slurm", 1, tmp_path / "jobs", {}, {})
