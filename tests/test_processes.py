"""Whole runs of several processes: they evaluate what one does, and stop together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from medadv_jax import distributed
from medadv_jax.distributed import SaveTogether, Share, make_local_mesh

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "helpers" / "run_worker.py"


def start(folder: Path, processes: int, devices: int, *arguments: str) -> list[subprocess.Popen]:
    """Starts a run in folder/run, in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0",
    }
    command = [sys.executable, str(WORKER), str(folder / "run"), str(folder / "cache"), *arguments]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    others = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    flags = [[*others, f"--process_id={i}"] if processes > 1 else [] for i in range(processes)]
    return [
        subprocess.Popen([*command, *each], env=environment, cwd=ROOT, **pipe) for each in flags
    ]


def finish(workers: list[subprocess.Popen], code: int = 0) -> str:
    """Waits for all; returns what the first said."""
    try:
        outputs = [worker.communicate(timeout=500)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [code] * len(workers), outputs
        return outputs[0]
    finally:
        for worker in workers:
            worker.kill()


def keep_only_training(run: Path) -> None:
    kept = {"config.json", "splits.json", "metrics.jsonl", "digests.json"}
    for path in run.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()


def records(run: Path) -> dict[str, Any]:
    tables = sorted(run.glob("*.parquet"))
    texts = [run / name for name in ("results.csv", "self_checks.json", "thresholds.json")]
    return {path.name: pq.read_table(path).to_pydict() for path in tables} | {
        path.name: path.read_text() for path in texts if path.exists()
    }


def test_two_processes_evaluate_what_one_does(tmp_path):
    finish(start(tmp_path, 1, 1, "--defenses=base", "--epochs=1"))
    alone = records(tmp_path / "run")
    assert {"predictions.parquet", "results.csv", "thresholds.json"} <= alone.keys()
    keep_only_training(tmp_path / "run")
    said = finish(start(tmp_path, 2, 1, "--defenses=base", "--epochs=1"))
    assert "train base: done before" in said
    assert "evaluate base: done before" not in said
    assert records(tmp_path / "run") == alone


@pytest.mark.slow
def test_two_processes_of_four_devices_run_what_one_device_does(tmp_path):
    finish(start(tmp_path / "one", 1, 1))
    finish(start(tmp_path / "two", 2, 4))
    one, two = (records(tmp_path / name / "run") for name in ("one", "two"))
    assert one["results.csv"] == two["results.csv"]
    verdicts = [
        [
            (c["number"], c["defense"], c["verdict"])
            for c in json.loads(each["self_checks.json"])["checks"]
        ]
        for each in (one, two)
    ]
    assert verdicts[0] == verdicts[1]
    assert len(verdicts[0]) > 30
    first, second = one["predictions.parquet"], two["predictions.parquet"]
    scores = [np.array(each.pop("score")) for each in (first, second)]
    assert first == second
    # Adam makes whole steps of gradients that are rounding, so weights differ a little.
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=0.02)
    # What is evaluated is the same to rounding, once the weights are.
    shutil.copytree(tmp_path / "two" / "run", tmp_path / "again" / "run")
    keep_only_training(tmp_path / "again" / "run")
    finish(start(tmp_path / "again", 1, 1))
    third = records(tmp_path / "again" / "run")["predictions.parquet"]
    np.testing.assert_allclose(third["score"], scores[1], rtol=0, atol=1e-5)


def test_a_signal_at_one_process_stops_both_after_the_same_step(tmp_path):
    flags = ("--defenses=base", "--epochs=5000")
    workers = start(tmp_path, 2, 1, *flags)
    checkpoints = tmp_path / "run" / "checkpoints" / "base"
    deadline = time.monotonic() + 300
    while not [*checkpoints.glob("[1-9]*")] and time.monotonic() < deadline:
        time.sleep(0.2)
    workers[1].send_signal(signal.SIGTERM)
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [143, 143], outputs
    lines = [[line for line in each.splitlines() if "stopped in" in line] for each in outputs]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 1
    workers = start(tmp_path, 2, 1, *flags)
    try:
        assert workers[0].stdout is not None
        said = next(line for line in workers[0].stdout if "going on" in line)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert "going on after epoch" in said or "going on within epoch" in said


@pytest.mark.parametrize(
    ("count", "block", "processes"), [(10, 3, 2), (7, 1, 3), (2, 4, 3), (5, 8, 1)]
)
def test_shares_are_whole_blocks_and_gather_to_the_whole(monkeypatch, count, block, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(Share(count, block))
    rows = [share.mine for share in shares if not share.idle]
    assert sorted(np.concatenate(rows).tolist()) == list(range(count))
    for each in rows:
        starts = {i // block * block for i in each}
        assert sorted(each) == [i for s in sorted(starts) for i in range(s, min(s + block, count))]
    whole = np.random.default_rng(0).normal(size=(3, count, 2))
    most = max(map(len, rows))

    def together(own):
        padded = [np.zeros((most, 3, 2)) for _ in shares]
        for pad, share in zip(padded, shares, strict=True):
            part = whole[:, share.mine].swapaxes(0, 1)[:most]
            pad[: len(part)] = part
        assert any(np.array_equal(own, each) for each in padded)
        return np.stack(padded)

    monkeypatch.setattr(distributed, "of_all_processes", together)
    for share in shares:
        np.testing.assert_array_equal(share.gather(whole[:, share.mine], axis=1), whole)


def test_a_single_process_stops_at_once():
    together = SaveTogether(make_local_mesh())
    assert [together.ask(wish) for wish in (False, True, False)] == [False, True, False]
