"""The command line: help, paths, encodings, and an environment that lacks something."""

import io
import multiprocessing.synchronize
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import rich.table

import main
from configs import default
from medadv_jax import cli, config, error_messages
from medadv_jax.errors import UserError
from medadv_jax.experiment.run import check_name
from medadv_jax.experiment.sweep import grids
from medadv_jax.progress import default_console

DEMO = str(cli.DEFAULTS.with_name("demo.py"))


def test_help_lists_every_field_with_its_comment(monkeypatch, capsys):
    comments = config.describe_fields(cli.DEFAULTS)
    assert comments.keys() == config.flatten(default.get_config()).keys()
    assert all(comments.values())
    assert comments["defenses"] == "comma-separated; trained in this order"  # in the line above
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(SystemExit) as caught:
        cli._parse(["main.py", "--help", f"--config={DEMO}"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert text.startswith("Trains and attacks the classifiers of one config.")
    assert "  --workdir: The run directory" in text
    assert f"  attack.norm=linf  {comments['attack.norm']}\n" in text
    assert "  data.name=phantoms  " in text  # the value of the file that is given
    assert set(re.findall(r"^  ([\w.]+)=", text, re.M)) == comments.keys()


@pytest.mark.parametrize("given", [["--config=configs/no.py"], ["--config", "configs/no.py"]])
def test_a_config_that_is_not_there_is_one_line(given, monkeypatch, tmp_path, capsys):
    """Also from another current folder, and without a field beside it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli._parse(["main.py", *given])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --config=configs/no.py: cannot be read; it must be the path of a file like"
        f" configs/demo.py, from the current folder {tmp_path}"
    ]


def test_a_device_that_is_not_there_is_one_line_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    assert cli.guard(lambda: print(jax.devices("nonsense"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: JAX_PLATFORMS=nonsense: JAX finds no such device")
    assert "unset it" in line


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"8 x epsilon ... \xfc \udcff"), ("utf-8", r"8 × ε … ü \udcff")],
)
def test_output_of_any_encoding(encoding, shown, monkeypatch):
    """Tables and lines fall back to plain characters; file names that are no UTF-8 are shown."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    cli.print_in_any_encoding()
    console, table = default_console(), rich.table.Table("8 × ε")
    table.add_row("±")
    console.print(table)
    print("8 × ε … ü \udcff", flush=True)
    assert stream.buffer.getvalue().decode(encoding).endswith(shown + "\n")


@pytest.mark.parametrize(("flag", "level"), [("--verbose", "3"), ("--debug", "")])
def test_alarms_of_xla_are_off_before_jax_is_imported(flag, level):
    """Such as that of slow compilation, which would cut through the bar."""
    code = (
        "import os, sys; found = []\n"
        "class Watch:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'jax':\n"
        "            found.append(os.environ.get('TF_CPP_MIN_LOG_LEVEL', ''))\n"
        "sys.meta_path.insert(0, Watch()); import main; print(found)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code, flag], cwd=cli.DEFAULTS.parents[1], env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{[level]}\n"


@pytest.mark.parametrize("text", ["8/255", "8 / 255", "0.03137254901960784"])
def test_fractions_are_numbers_for_flags_and_sweeps(text):
    shown = default.get_config()
    config.set_field(shown, "attack.epsilon", text)
    assert shown.attack.epsilon == 8 / 255
    parser = config.config_flags.config_flags._FIELD_TYPE_TO_PARSER[float]
    assert parser.parse(text) == 8 / 255


@pytest.mark.parametrize("text", ["8/0", "8/", "/255", "a/b", "8//255", "0,03"])
def test_what_is_no_fraction_is_no_number(text):
    fields = config.flatten(default.get_config())
    line = config.explain_field("attack.epsilon", text, fields)
    assert line == f"config.attack.epsilon={text}: must be a number"
    assert config.explain_field("train.epochs", "8/2", fields).endswith("must be an integer")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train.epcohs", "train.epochs"),
        ("eval.batchsize", "eval.batch_size"),
        ("attack.eps", "attack.epsilon"),
        ("purifier.lerning_rate", "purifier.learning_rate"),
        ("trian.epochs", "train.epochs"),
    ],
)
def test_a_mistyped_field_is_answered_with_the_nearest(typed, meant):
    line = config.explain_field(typed, "3", config.flatten(default.get_config()))
    assert f"did you mean config.{meant}?" in line
    assert len(line) < 120


def test_an_unlike_field_is_answered_with_its_section():
    line = config.explain_field("purifier.zzz", "3", config.flatten(default.get_config()))
    assert "known are purifier." in line
    assert "train." not in line


def test_home_folder_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "demo.py").write_text(Path(DEMO).read_text())
    assert config.expand_path("~/x", "--workdir") == tmp_path / "x"
    assert config.load_config("~/demo.py").data.name == "phantoms"
    with pytest.raises(UserError, match=r"--grid=~/no.py: unknown"):
        grids.load_grid("~/no.py")


def test_no_home_folder_is_one_line_that_names_the_field(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(UserError, match=r"--workdir=~/x: no home folder is known; set HOME"):
        config.expand_path("~/x", "--workdir")
    with pytest.raises(RuntimeError) as caught:
        Path("~").expanduser()
    assert "set HOME" in error_messages.explain(caught.value, None, None)


@pytest.mark.parametrize("name", ["lung [2024]", "a*", "a?", "a\\b", "gs:/x", "s3:/x", "\udcff"])
def test_a_workdir_that_orbax_takes_for_a_pattern_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"--workdir=.*could not be found again"):
        check_name(tmp_path / name / "run")
    check_name(tmp_path / "a b (2) ü {c} x:y" / "run")


def test_missing_shared_memory_is_not_blamed_on_the_workdir(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", refuse)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OSError, match="Read-only") as caught:
        multiprocessing.Lock()
    line = error_messages.explain(caught.value, None, tmp_path)
    assert line.startswith("/dev/shm:")
    assert str(tmp_path) not in line
