"""Sweeps: where cells run, and what happens when some fail; with a stand-in for main.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medadv_jax.errors import UserError
from medadv_jax.experiment.sweep import lock
from medadv_jax.experiment.sweep.cells import is_finished, reuse_of, saved_config, shared_stages
from medadv_jax.experiment.sweep.grids import ROOT, Grid, make_cells
from medadv_jax.experiment.sweep.journal import Journal
from medadv_jax.experiment.sweep.launchers import ClusterLauncher, LocalLauncher, visible_devices
from medadv_jax.experiment.sweep.scheduler import BEFORE, DONE, FAILED, Scheduler, explain
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


def local(slots=1, environment=None):
    return LocalLauncher(slots, {}, os.environ if environment is None else environment, 0)


def run(tmp_path, cells, main, launcher):
    folder = tmp_path / "sweep"
    scheduler = Scheduler(cells, launcher, Journal(folder, cells), folder / "logs", main)
    return scheduler.run()


def starts(cell):
    return (cell.folder / "starts").read_text().splitlines()


def test_failures_stop_nothing_and_only_they_are_tried_again(tmp_path, main):
    cells = seeds(tmp_path, 5)
    plan(tmp_path, cells, ["memory", "fine", "nan", "kill"])
    statuses = run(tmp_path, cells, main, local())
    assert [s.state for s in statuses] == [FAILED, DONE, FAILED, FAILED, DONE]
    assert statuses[0].reason == (
        "RuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."
    )
    assert statuses[2].reason == "base: the loss is not finite at step 3"
    assert statuses[3].reason.startswith("killed by SIGKILL")
    journal = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["cells"]
    assert [row["failure"] for row in journal.values()] == [s.reason for s in statuses]

    plan(tmp_path, cells, ["fine", "fine", "fine", "kill"])
    statuses = run(tmp_path, cells, main, local())
    assert [s.state for s in statuses] == [DONE, BEFORE, DONE, FAILED, BEFORE]
    assert [len(starts(cell)) for cell in cells] == [2, 1, 2, 2, 1]
    rows = Journal(tmp_path / "sweep", cells)
    # A time is that of a cell which needed one start: the first was cut short.
    assert rows.estimate(cells[0], "seconds") is not None
    journal = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["cells"]
    assert [row["seconds"] is None for row in journal.values()] == [True, False, True, True, False]


def test_a_run_of_another_config_is_not_taken_for_the_cell(tmp_path, main):
    cells = seeds(tmp_path, 1)
    plan(tmp_path, cells)
    run(tmp_path, cells, main, local())
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
    launcher = local(0, {**os.environ, "CUDA_VISIBLE_DEVICES": "3,5"})
    assert launcher.slots == 2
    run(tmp_path, cells, main, launcher)
    assert [starts(cell) for cell in cells[:2]] == [["3"], ["5"]]
    assert all(starts(cell) in (["3"], ["5"]) for cell in cells)
    assert visible_devices({"ROCR_VISIBLE_DEVICES": "1"}) == ("ROCR_VISIBLE_DEVICES", ["1"])
    shared = local(3, {"CUDA_VISIBLE_DEVICES": "3,5"}).environment(2)
    assert shared["CUDA_VISIBLE_DEVICES"] == "3"
    assert shared["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
    assert local(1, {"CUDA_VISIBLE_DEVICES": "3,5"}).environment(0) == {
        "CUDA_VISIBLE_DEVICES": "3,5"
    }


def test_a_cell_takes_from_an_earlier_one_what_it_would_train_alike(tmp_path, main):
    grid = Grid((DEMO,), axes={"purifier.bottleneck": (64, 128), "attack.epsilon": (0.03, 0.01)})
    cells = make_cells(grid, tmp_path / "sweep")
    first, weaker, other, _ = cells
    assert shared_stages(weaker, first) == ["base"]
    assert shared_stages(other, first) == ["base", "adversarial"]
    assert not shared_stages(*seeds(tmp_path, 2))
    plan(tmp_path, cells, ["nan"])
    statuses = run(tmp_path, cells, main, local(4))
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
    run(tmp_path, cells, main, local())
    assert (saved_config(other.folder) or {})["reuse"] == str(first.folder)
    assert is_finished(other)


def test_a_cell_waits_for_what_it_can_take(tmp_path, main):
    cells = make_cells(Grid((DEMO,), axes={"purifier.bottleneck": (64, 128)}), tmp_path / "sweep")
    order = []
    plan(tmp_path, cells)
    folder = tmp_path / "sweep"
    Scheduler(
        cells, local(2), Journal(folder, cells), folder / "logs", main,
        changed=lambda status: order.append((status.cell.name[-3:], status.state)),
    ).run()  # fmt: skip
    assert order == [("=64", "running"), ("=64", DONE), ("128", "running"), ("128", DONE)]


def wait_for(path, seconds=20):
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, path
        time.sleep(0.05)
    return path.read_text()


def is_gone(pid, seconds=10.0):
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


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_cells_end_with_a_sweep_that_is_killed_and_its_lock_with_them(tmp_path, main):
    cells = seeds(tmp_path, 1)
    plan(tmp_path, cells, ["sleep"])
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import os, pathlib
from medadv_jax.experiment.sweep import lock
from medadv_jax.experiment.sweep.launchers import LocalLauncher
folder = pathlib.Path({str(tmp_path / "sweep")!r})
with lock.held(folder, print) as descriptor:
    arguments = [{str(main)!r}, "--workdir={cells[0].folder}"]
    LocalLauncher(1, {{}}, os.environ, descriptor).start(arguments, folder / "log", 0)
    print("started", flush=True)
    import time
    time.sleep(60)
"""
    (tmp_path / "sweep").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as sweep:
        pid = wait_for(cells[0].folder / "pid")
        with (
            pytest.raises(UserError, match=f"process {sweep.pid}.* is at work"),
            lock.held(tmp_path / "sweep", print),
        ):
            pass
        sweep.send_signal(signal.SIGKILL)
    said = []
    with lock.held(tmp_path / "sweep", said.append):
        assert is_gone(pid, 0.2)
    assert said == ["waiting for the cells of a start that was killed to save their state"]


def test_an_interrupted_sweep_stops_its_cells(tmp_path, main):
    cells = seeds(tmp_path, 2)
    plan(tmp_path, cells, ["sleep", "sleep"])
    folder = tmp_path / "sweep"

    def interrupt():
        if all((cell.folder / "pid").exists() for cell in cells):
            raise KeyboardInterrupt

    scheduler = Scheduler(
        cells, local(2), Journal(folder, cells), folder / "logs", main, tick=interrupt
    )
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()
    assert all(is_gone((cell.folder / "pid").read_text(), 0.1) for cell in cells)
    assert all((cell.folder / "saved").exists() for cell in cells)


def test_jobs_of_the_cluster_launcher(tmp_path, main):
    pytest.importorskip("submitit")
    cells = seeds(tmp_path, 2)
    plan(tmp_path, cells, ["fine", "nan"])
    launcher = ClusterLauncher(2, {"CUDA_VISIBLE_DEVICES": "9"}, tmp_path / "jobs", {}, "local")
    statuses = run(tmp_path, cells, main, launcher)
    assert [s.state for s in statuses] == [DONE, FAILED]
    assert statuses[1].reason == "base: the loss is not finite at step 3"
    assert starts(cells[0]) == ["9"]
    with pytest.raises(UserError, match=r"--launcher=slurm"):
        ClusterLauncher(1, {}, tmp_path / "jobs", {"no_such_parameter": 1}, "local")
