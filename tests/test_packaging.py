"""What the wheel holds, and that it works away from the source folder."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = "import medadv_jax; medadv_jax.load; print(medadv_jax.__version__, medadv_jax.__file__)"


def _run(*command: str | Path, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _tracked(folder: str) -> list[str]:
    return _run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", folder, cwd=ROOT
    ).split()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the project, so that the build leaves nothing in the working folder."""
    folder = tmp_path_factory.mktemp("source")
    for name in _tracked("."):  # with all that must not get into the wheel
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory) -> Path:
    """The wheel, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    _run(*pip, "--no-index", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_package_and_nothing_else(wheel: Path):
    """Every tracked file of the package is in it: modules, templates, py.typed."""
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert inside == set(_tracked("medadv_jax"))
    assert "medadv_jax/py.typed" in inside


def test_wheel_works_from_another_folder(wheel: Path, tmp_path: Path):
    """The installed package is found, with its version and its `load`."""
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    _run(*pip, "--target", target, wheel)
    printed = _run(sys.executable, "-c", USE, cwd=elsewhere, env={"PYTHONPATH": str(target)})
    assert printed.split() == ["0.1.0", str(target / "medadv_jax/__init__.py")]


def test_import_is_light():
    """`import medadv_jax` imports no JAX, and nothing else that takes time."""
    code = (
        "import sys, time; start = time.perf_counter(); import medadv_jax;"
        "took = time.perf_counter() - start; medadv_jax.load; medadv_jax.__version__;"
        "print(took, *{'jax', 'flax', 'numpy', 'absl'} & set(sys.modules))"
    )
    took, *heavy = _run(sys.executable, "-c", code, cwd=ROOT).split()
    assert not heavy
    assert float(took) < 0.2


@pytest.mark.slow
def test_clean_install(source: Path, tmp_path: Path):
    """`pip install .` into an empty environment, with all dependencies. Needs the network."""
    python = tmp_path / "venv/bin/python"
    _run(sys.executable, "-m", "venv", tmp_path / "venv")
    _run(python, "-m", "pip", "install", "--quiet", source)
    assert str(tmp_path) in _run(python, "-I", "-c", USE, cwd=tmp_path)
    _run(python, "-I", "-c", "import medadv_jax.experiment.run, medadv_jax.report", cwd=tmp_path)


@pytest.mark.parametrize(
    "file",
    ["requirements.lock", "benchmarks/peers_requirements.txt", "tools/parity_requirements.txt",
     "tools/torch_requirements.txt"],
)  # fmt: skip
def test_every_requirement_has_its_hash(file):
    text = (ROOT / file).read_text().replace("\\\n", " ")
    pinned = [line for line in text.splitlines() if re.match(r"\w", line)]
    assert pinned
    assert all("==" in line and "--hash=sha256:" in line for line in pinned)


@pytest.mark.parametrize("target", ["setup", "parity", "peers"])
def test_environments_are_installed_by_hashes_with_the_build_tool_of_the_lock(target):
    command = ["make", "--dry-run", "--always-make", target]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installed = [line for line in said.splitlines() if "pip install" in line]
    assert len(installed) == 3
    assert "build_tools.txt" in installed[0]
    assert "--no-build-isolation" in installed[1]
    own = "--no-deps --no-build-isolation -e ."
    assert all("--require-hashes" in line or line.endswith(own) for line in installed)
