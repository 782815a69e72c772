"""Who may import whom: the floors of the package, read from its source without importing it."""

import ast
import graphlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "medadv_jax"

# room -> floor; a room imports only rooms on lower floors, and itself.
FLOORS = {
    "errors": 0,
    "distributed": 1,
    "files": 1,
    "interrupts": 1,
    "progress": 1,
    "config": 2,
    "attacks": 3,
    "data": 3,
    "error_messages": 3,
    "models": 3,
    "classifier": 4,
    "cli": 4,
    "defenses": 5,
    "evaluation": 6,
    "report": 7,
    "training": 7,
    "deployment": 8,
    "experiment": 9,
    "": 10,  # medadv_jax/__init__.py, the package's front door
}
OUTSIDE = ("main", "configs", "data", "scripts", "benchmarks", "tools", "tests")


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return [ROOT / name for name in sorted(set(listed)) if (ROOT / name).is_file()]


def _name(file: Path) -> str:
    """The module's dotted name, such as `medadv_jax.attacks.run`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    """The file or folder in the package that holds the module; `name/` outside the package."""
    first, *rest = module.split(".")
    if first != PACKAGE:
        return f"{first}/"
    return rest[0] if rest else ""


def imports(source: str, modules: set[str]) -> set[str]:
    """Every module of `modules` that the source imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else str(node.module))
    return {name for name in found if name in modules or name.split(".")[0] in OUTSIDE}


def _graph() -> dict[str, set[str]]:
    files = {_name(file): file for file in _tracked(f"{PACKAGE}/*.py")}
    return {name: imports(file.read_text(), set(files)) for name, file in files.items()}


GRAPH = _graph()


def test_every_room_has_a_floor():
    """A new file or folder in the package must be given its place in the table."""
    assert {_room(name) for name in GRAPH} <= set(FLOORS)


def test_imports_go_down():
    """No import goes upwards, nor sideways to another room of the same floor."""
    wrong = [
        f"{name} imports {target}"
        for name, targets in GRAPH.items()
        for target in targets
        if _room(name) != _room(target)
        and target.startswith(PACKAGE)
        and FLOORS[_room(target)] >= FLOORS[_room(name)]
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_package_imports_nothing_outside():
    """The package is installed without configs, scripts, benchmarks, tools and tests."""
    wrong = [
        f"{name} imports {target}"
        for name, targets in GRAPH.items()
        for target in targets
        if target.split(".")[0] in OUTSIDE
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circle():
    """No two modules need each other, not even for type checking or within a function."""
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError and names the circle


def test_attacks_know_only_seams():
    """Attacks know nothing of networks; only `from_config` knows the config."""
    outside = {
        (name, _room(target))
        for name, targets in GRAPH.items()
        for target in targets
        if _room(name) == "attacks" and _room(target) != "attacks"
    }
    assert {room for _, room in outside} <= {"config", "errors"}
    assert {name for name, room in outside if room == "config"} <= {
        f"{PACKAGE}.attacks.from_config"
    }


def test_models_know_no_attack():
    """Networks know nothing of the project but its errors and files."""
    rooms = {_room(t) for name, ts in GRAPH.items() if _room(name) == "models" for t in ts}
    assert rooms <= {"models", "errors", "files"}


def test_few_rooms_import_the_report():
    """Records are derived and read without drawing: only the order of the stages draws.

    Outside, one tool compares the report's tables after each flip of a byte.
    """
    users = {_room(name) for name, ts in GRAPH.items() if "report" in {_room(t) for t in ts}}
    assert users <= {"report", "deployment", "experiment"}
    outside = [
        file
        for folder in ("configs", "data", "benchmarks", "tools")
        for file in _tracked(f"{folder}/*.py")
        if any(_room(t) == "report" for t in imports(file.read_text(), set(GRAPH)))
    ]
    assert [file.name for file in outside] == ["flip_bytes.py"]


def test_few_files_and_folders_at_the_top():
    """The package's own folder can be read at a glance."""
    inside = [file.relative_to(ROOT / PACKAGE) for file in _tracked(f"{PACKAGE}/*")]
    assert len({path.name for path in inside if len(path.parts) == 1}) <= 11
    assert len({path.parts[0] for path in inside if len(path.parts) > 1}) <= 9


@pytest.mark.parametrize(
    ("file", "limit"),
    [(ROOT / "main.py", 70), *((file, 60) for file in _tracked("scripts/*.py"))],
    ids=lambda value: value.name if isinstance(value, Path) else f"under_{value}",
)
def test_scripts_are_short(file: Path, limit: int):
    """A script parses its flags and hands over to the package."""
    assert len(file.read_text().splitlines()) < limit


@pytest.mark.parametrize(
    "source",
    [
        "from medadv_jax import report",
        "import medadv_jax.report",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from medadv_jax.report import x",
        "def f():\n    from medadv_jax.report import x",
    ],
)
def test_every_kind_of_import_is_seen(source: str):
    """The reader of imports misses no way to write one."""
    assert imports(source, {"medadv_jax", "medadv_jax.report"}) == {"medadv_jax.report"}
