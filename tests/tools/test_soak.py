"""A short soak; `make soak` is the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import soak

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_run_ends_as_an_undisturbed_one(tmp_path):
    command = [sys.executable, "-m", "tools.soak", f"--folder={tmp_path}", "--kills=4"]
    done = subprocess.run([*command, "--defenses=base,adversarial"], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("SIGKILL") == 4


def test_kills_are_spread_over_all_stages():
    stages = ["start", "train base", "evaluate base", "report"]
    found = soak.plan(stages, 8)
    assert [stage for stage, name in found if name == "SIGKILL"] == sorted(
        stages * 2, key=stages.index
    )
    assert ("train base", "SIGTERM") in found
    assert len(found) == 9


def test_what_two_runs_are_compared_by(tmp_path):
    part = {"name": "apgd", "broken": 3, "seconds": 1.5}
    path = tmp_path / "attack_record.json"
    found = []
    for change in ({}, {"seconds": 9.0}, {"broken": 4}):
        path.write_text(json.dumps({"base": {"apgd": {"parts": [part | change]}}}))
        found.append(soak.attack_record(tmp_path))
    assert found[0] == found[1] != found[2]
    assert soak.model_files(tmp_path) == []
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "models" / "base" / "model.json").write_text("{}")
    assert soak.model_files(tmp_path) == ["models/base/model.json"]
