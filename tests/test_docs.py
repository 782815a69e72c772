"""README and docs say what is true: links, limits, commands and Python blocks."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import default
from medadv_jax.config import explain_field, flatten
from tests.helpers.tiny import write_demo_model

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "data/README.md",
]
PAGES += DOCS
ADAPTERS = ROOT / "docs/adapters.md"  # needs libraries that `make peers` installs
FIELDS = flatten(default.get_config())
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TOP = ("benchmarks", "configs", "data", "docs", "medadv_jax", "scripts", "tests", "tools")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in _FENCE.findall(page.read_text()) if kind == language]


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def test_readme_is_short():
    """At most 120 lines and 900 words; no long line outside tables and code."""
    text = (ROOT / "README.md").read_text()
    prose = [line for line in _prose(ROOT / "README.md").splitlines() if not line.startswith("|")]
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900
    assert max(map(len, prose)) <= 200


@each_page
def test_blocks_are_tested(page: Path):
    """Blocks are python or bash, which are tested below; plain listings contain no command."""
    command = re.compile(r"^\W*(python|make|pip|\.venv)\b", re.MULTILINE)
    for kind, body in _FENCE.findall(page.read_text()):
        assert kind in ("python", "bash") or (kind in ("", "text") and not command.search(body))
    assert page.read_text().count("```") == 2 * len(_FENCE.findall(page.read_text()))


@each_page
def test_links_are_alive(page: Path):
    """Every relative link leads to a file, and to a heading of it where it names one."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    assert not dead


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@each_page
def test_files_exist(page: Path):
    """Every path of this repository that the text names, as `tests/test_docs.py`, is there."""
    named = re.findall(r"`([\w./-]+)`", _prose(page))
    paths = [name for name in named if "/" in name and name.split("/")[0] in _TOP]
    assert [name for name in paths if not (ROOT / name).exists() and not _is_ignored(name)] == []


def _is_ignored(path: str) -> bool:
    """Whether git ignores the path: a place for the user's own files, such as a download."""
    return not subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode


@each_page
def test_inline_commands(page: Path):
    """Targets of make and config fields in the text exist."""
    prose = _prose(page)
    faults = [
        fault for name in re.findall(r"`make (\w+)`", prose) for fault in check(f"make {name}")
    ]
    for field, value in re.findall(r"`--config\.([\w.]+)(?:=([^`\s]+))?`", prose):
        if not field.isupper():
            faults.append(explain_field(field, value or None, FIELDS))
    assert not list(filter(None, faults))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if _blocks(page, "python") and page != ADAPTERS],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The blocks of a page run one after the other, as a reader would type them."""
    if "medadv_jax.load(" in "".join(_blocks(page, "python")):  # in a folder with the demo's run
        write_demo_model(tmp_path)
        monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for number, body in enumerate(_blocks(page, "python"), start=1):
        exec(compile(body, f"{page.name}, block {number}", "exec"), names)


def test_adapters_run():
    """The blocks that call other attack libraries run where these are installed."""
    if not (ROOT / ".venv-peers/.installed").exists():
        pytest.skip("other attack libraries are not installed: make peers")
    program = "\n".join(_blocks(ADAPTERS, "python"))
    done = subprocess.run(
        [ROOT / ".venv-peers/bin/python", "-c", program],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@each_page
def test_commands_exist(page: Path):
    """Scripts, flags, config fields, grids and make targets of the commands exist."""
    commands = [
        line
        for body in _blocks(page, "bash")
        for line in body.replace("\\\n", " ").splitlines()
        if line.strip()
    ]
    assert [fault for command in commands for fault in check(command)] == []


def check(command: str) -> list[str]:
    """Returns what is wrong with a command of a shell block."""
    words = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z]+=", word)]
    if words[0] == "srun":
        words = words[next(i for i, word in enumerate(words) if word.endswith("python")) :]
    program, *words = words
    if program == "make":
        return [f"make {word}: no such target" for word in words if word not in _targets()]
    if program.endswith("python") and words[0] == "-m":
        return _check_script(words[1].replace(".", "/") + ".py", words[2:])
    if program.endswith("python"):
        return _check_script(words[0], words[1:])
    if program.endswith("/pip"):
        extras = set(re.findall(r"\[(\w+)\]", command))
        return [f"no extra {extra}" for extra in extras - _extras()]
    return [] if program == ".venv/bin/pre-commit" else [f"{program}: a program not known here"]


def _targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _extras() -> set[str]:
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    return set(re.findall(r"^(\w+) = \[", section.partition("\n[")[0], re.MULTILINE))


def _check_script(script: str, words: list[str]) -> list[str]:
    if not (ROOT / script).is_file():
        return [f"{script}: no such file"]
    faults = []
    for name, _, value in (word[2:].partition("=") for word in words if word.startswith("--")):
        if name.startswith("config."):
            faults.append(explain_field(name[7:], value or None, FIELDS))
        elif name.startswith("sweep."):
            faults += [explain_field(name[6:], part, FIELDS) for part in value.split(",")]
        elif name not in _flags(script):
            faults.append(f"{script}: no flag --{name}")
        elif name in ("config", "configs"):
            faults += [f"{path}: no such file" for path in value.split(",") if not _is_config(path)]
        elif name == "grid" and not (ROOT / f"configs/grids/{value}.py").is_file():
            faults.append(f"{value}: no such grid")
    return [fault for fault in faults if fault]


def _is_config(path: str) -> bool:
    return path.startswith("configs/") and (ROOT / path).is_file()


@functools.cache
def _flags(script: str) -> set[str]:
    """The flags that a script defines, or any module of the package."""
    define = re.compile(r"DEFINE_\w+\(\s*\"(\w+)\"|add_argument\(\s*\"--(\w+)\"")
    files = [ROOT / script, *(ROOT / "medadv_jax").rglob("*.py")]
    return {a or b for file in files for a, b in define.findall(file.read_text())}


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "python scripts/nothing.py",
        "python -m tools.nothing",
        "python main.py --config=configs/nothing.py",
        "python main.py --config=configs/demo.py --nothing=1",
        "python main.py --config=configs/demo.py --config.train.nothing=1",
        "python main.py --config=configs/demo.py --config.train.epochs=many",
        "python scripts/sweep.py --grid=nothing",
        "python scripts/sweep.py --grid=smoke --sweep.attack.nothing=0.01,0.03",
        ".venv/bin/pip install -e '.[nothing]'",
        "nothing --flag",
    ],
)
def test_wrong_commands_are_found(command: str):
    """The checks above find what is wrong."""
    assert check(command)


def test_every_page_is_in_the_site():
    """The site's navigation lists every page of docs/."""
    nav = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(nav) == [page.name for page in DOCS]


def test_site_refuses_a_dead_link(tmp_path: Path):
    """The command of `make docs` fails on a link to no page, and to no heading of a page."""
    arguments = re.search(r"/mkdocs (build .+)", (ROOT / "Makefile").read_text())
    assert arguments is not None
    build = [sys.executable, "-m", "mkdocs", *arguments[1].split()]
    settings = (ROOT / "mkdocs.yml").read_text().split("nav:\n  - Overview")[0]
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(settings)
    (tmp_path / "docs/index.md").write_text("# Page\n\n[a](nothing.md) [b](index.md#heading)\n")
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing.md" in done.stderr
    assert "#heading" in done.stderr
