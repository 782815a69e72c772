"""The script fills the cache of a config, from any folder."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_prepare_builds_the_cache_and_prints_its_report(tmp_path):
    command = [sys.executable, ROOT / "data/prepare.py", f"--config={ROOT / 'configs/demo.py'}"]
    fields = {"cache_dir": tmp_path / "cache", "phantom_images": 4, "image_size": 32}
    command += [f"--config.data.{name}={value}" for name, value in fields.items()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report, _, counts = done.stdout.rpartition("}\n")
    assert json.loads(report + "}")["files_listed"] == 4
    assert counts.startswith("phantoms: 2 negative, 2 positive, 2 groups")
    assert [path.name for path in (tmp_path / "cache").glob("*/phantoms/*")] == ["drawn_32"]
