"""Sweeps: which cells there are, what a person sees of them, and one real cell."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from medadv_jax.config import load_config
from medadv_jax.errors import UserError
from medadv_jax.experiment.sweep import grids, run_sweep
from medadv_jax.experiment.sweep.cells import last_lines, progress
from medadv_jax.experiment.sweep.display import live_table, print_change, print_plan
from medadv_jax.experiment.sweep.grids import NAMED, ROOT, Grid, load_grid, make_cells
from medadv_jax.experiment.sweep.scheduler import (
    BEFORE,
    FAILED,
    RUNNING,
    Status,
    initial_statuses,
)
from tests.helpers.sweep_cells import DEMO, seeds


def test_a_grid_is_every_combination_of_files_and_values(tmp_path):
    grid = Grid(
        ("configs/pneumonia_resnet.py", "configs/pneumonia_inception.py"),
        fields={"data.image_size": 64, "train.epochs": 3},
        special={"*_inception": {"data.image_size": 80}},
        axes={"seed": (0, 1), "attack.epsilon": (0.01, 0.03)},
    )
    cells = make_cells(grid, tmp_path)
    assert len({cell.folder for cell in cells}) == 8
    assert cells[5].name == "pneumonia_inception-seed=0-attack.epsilon=0.03"
    found = [(c.config.model.name, c.config.data.image_size, c.config.seed) for c in cells[::2]]
    assert found == [("resnet50", 64, 0), ("resnet50", 64, 1), ("inception_v3", 80, 0),
                     ("inception_v3", 80, 1)]  # fmt: skip
    typed = grid.override(
        ("configs/demo.py",), {"seed": "7", "data.image_size": "96"}, {"attack.epsilon": ["0.02"]}
    )
    (cell,) = make_cells(typed, tmp_path)
    assert cell.config.to_dict() == {
        **load_config(ROOT / DEMO).to_dict(), "seed": 7,
        **{k: cell.config.to_dict()[k] for k in ("data", "train", "attack")},
    }  # fmt: skip
    found = (cell.config.attack.epsilon, cell.config.train.epochs, cell.config.data.image_size)
    assert found == (0.02, 3, 96)


def test_rows_are_cells_with_their_name_and_fields(tmp_path):
    grid = Grid(
        (DEMO,), {"train.epochs": 3}, axes={"seed": (0, 1)},
        rows={"plain": {}, "long": {"train.epochs": 9, "train.ema": 0.9}},
    )  # fmt: skip
    cells = make_cells(grid, tmp_path)
    assert [cell.name for cell in cells] == [
        "demo-plain-seed=0", "demo-plain-seed=1", "demo-long-seed=0", "demo-long-seed=1",
    ]  # fmt: skip
    found = [(c.config.train.epochs, c.config.train.ema, c.config.seed) for c in cells]
    assert found == [(3, 0.0, 0), (3, 0.0, 1), (9, 0.9, 0), (9, 0.9, 1)]
    typed = make_cells(grid.override((), {"train.epochs": "2"}, {}), tmp_path)
    assert {cell.config.train.epochs for cell in typed} == {2}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid((DEMO,), {"train.epoch": 3}), "did you mean config.train.epochs?"),
        (Grid((DEMO,), axes={"train.epochs": ("many",)}), "train.epochs=many: must be an integer"),
        (Grid((DEMO,), axes={"train.epochs": ("0",)}), "train.epochs=0: must be at least 1"),
        (Grid((DEMO,), axes={"seed": (1, 1)}), "two cells are called demo-seed=1"),
        (Grid((DEMO,), axes={"attack.epsilon": ("0.03", "0.1", "3e-2")}),
         "demo-attack.epsilon=0.03 and demo-attack.epsilon=3e-2 are one run"),
        (Grid((DEMO,), axes={"seed": ()}), "--sweep.seed=: no value"),
        (Grid((DEMO,), {"reuse": "x"}), "a sweep sets it by itself"),
        (Grid(("configs/nowhere.py",)), "configs/nowhere.py: cannot be read"),
        (Grid(()), "no config file"),
    ],
)  # fmt: skip
def test_an_impossible_grid_is_refused_in_one_line(grid, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        make_cells(grid, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(NAMED.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_named_grids_are_possible(path, tmp_path):
    cells = make_cells(load_grid(path.stem), tmp_path)
    assert len(cells) == {"paper": 8, "honest": 40, "smoke": 8}.get(path.stem, len(cells)) > 0
    fresh = {cell.config.model.weights == "none" for cell in cells}
    assert fresh == {
        path.stem in ("smoke", "xrays", "objectives", "hybrids")
    }  # the others from ImageNet weights
    with pytest.raises(UserError, match=f"give a file, or one of .*{path.stem}"):
        load_grid("nothing")


def test_a_missing_folder_of_grids_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "NAMED", tmp_path / "configs" / "grids")
    with pytest.raises(UserError, match="--grid=smoke: unknown; give a file, as there are none"):
        load_grid("smoke")


def test_config_and_grid_files_import_configs_from_any_folder(tmp_path):
    """Also from a copy of the repository's, whose own `configs` they take."""
    copy = tmp_path / "copy" / "configs"
    (copy / "grids").mkdir(parents=True)
    (copy / "__init__.py").touch()
    (copy / "default.py").write_text("def get_config():\n    return {'seed': 5}\n")
    (copy / "own.py").write_text("from configs import default\nget_config = default.get_config\n")
    (copy / "grids" / "own.py").write_text(
        "from configs import default\nget_grid = default.get_config\n"
    )
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "medadv_jax").symlink_to(ROOT / "medadv_jax")
    code = (
        "import sys; from medadv_jax.config import call_config_file, load_config\n"
        "before = list(sys.path)\n"
        "print(load_config(sys.argv[1])['seed'])\n"
        "print(*(call_config_file(path, 'get_grid')['seed'] for path in sys.argv[2:]))\n"
        "assert sys.path == before\n"
    )

    def load(*paths):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "only")}
        command = [sys.executable, "-c", code, *map(str, paths)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return (done.stdout or done.stderr).split()

    assert load(copy / "own.py", copy / "grids" / "own.py") == ["5", "5"]
    assert load(ROOT / DEMO) == ["0"]


def test_a_person_sees_state_progress_and_time(tmp_path):
    cells = seeds(tmp_path, 3)
    log = tmp_path / "log"
    log.write_text("evaluate base: of an earlier start\ntrain base: epoch 2/6\nnote: more\n")
    told = progress(last_lines(log, 35))
    assert told == "train base: epoch 2/6"
    assert progress(last_lines(log, 57)) == ""
    statuses = [
        Status(cells[0], BEFORE), Status(cells[1], RUNNING, 60.0, told),
        Status(cells[2], FAILED, 2.0, reason="no memory"),
    ]  # fmt: skip
    text = io.StringIO()
    with live_table(Console(file=text, force_terminal=True, width=120), statuses):
        pass
    for part in ("1 of 3 cells done", told, "running", "60 s", "failed", "no memory"):
        assert part in text.getvalue()
    text = io.StringIO()
    print_change(Console(file=text), statuses[2])
    assert text.getvalue() == "demo-seed=2: failed after 2 s: no memory\n"


def test_fields_and_axes_of_the_command_line():
    argv = ["sweep.py", "--grid=smoke", "--config.x.y=a,b", "--sweep.seed=0,1", "--sweep.d=a,b;c"]
    known, given = run_sweep.take_fields(argv)
    assert known == ["sweep.py", "--grid=smoke"]
    fields, axes = run_sweep.parse_fields(given)
    assert fields == {"x.y": "a,b"}
    assert axes == {"seed": ["0", "1"], "d": ["a,b", "c"]}
    with pytest.raises(UserError, match=r"--sweep\.seed: needs a value"):
        run_sweep.parse_fields(["--sweep.seed"])


def test_one_real_cell_from_the_command_line_to_the_report(tmp_path):
    """main.py itself, as small as it can be; twice, as the second start must find it done."""
    fields = {
        "defenses": "base", "data.image_size": 32, "data.phantom_images": 60, "data.per_class": 0,
        "data.cache_dir": tmp_path / "cache",
        "compile_cache": tmp_path / "programs", "model.name": "vgg16", "model.width": 0.05,
        "model.head": "gap", "model.conv_impl": "plain", "train.epochs": 1, "train.batch_size": 32,
        "train.attacks": "pgd", "eval.attacks": "pgd", "eval.num_steps": 1, "eval.images": 6,
        "eval.checks": False, "detector.run": False,
    }  # fmt: skip
    command = [
        sys.executable, str(ROOT / "scripts" / "sweep.py"), f"--configs={DEMO}", "--seeds=3",
        f"--workdir={tmp_path / 'sweep'}", *(f"--config.{k}={v}" for k, v in fields.items()),
    ]  # fmt: skip

    def start(*more):
        return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)

    first = start()
    assert (first.returncode, first.stderr) == (0, "")
    assert "demo-seed=3: running" in first.stdout
    assert "1 of 1 cells are done (0 were before)" in first.stdout
    folder = tmp_path / "sweep"
    assert "eval.images=6: 6 of" in (folder / "logs" / "demo-seed=3.log").read_text()
    rows = (folder / "demo-seed=3" / "results.csv").read_text().splitlines()
    assert [row.split(",")[6] for row in rows] == ["n", "6", "6"]
    assert (folder / "report" / "index.html").is_file()
    assert any((tmp_path / "programs").iterdir())  # compiled once for all cells
    again = start("--dry_run")
    assert "all 1 cells are done" in again.stdout
    wrong = start("--sweep.train.epoch=3")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: config.train.epoch=3: unknown field; did you mean")
    assert wrong.stderr.count("\n") == 1


def test_dry_run_runs_nothing(tmp_path, capsys):
    cells = seeds(tmp_path, 2)
    print_plan(Console(width=200), initial_statuses(cells))
    said = capsys.readouterr().out
    assert "demo-seed=1" in said
    assert "2 of 2 cells to do" in said
    assert not (tmp_path / "sweep").exists()
