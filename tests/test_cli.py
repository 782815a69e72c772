"""The command line: help, paths, encodings, and an environment that lacks something."""

import multiprocessing.synchronize
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import default
from medadv_jax import cli, config, error_messages
from medadv_jax.errors import UserError
from medadv_jax.experiment.run import check_name
from medadv_jax.experiment.sweep import grids

ROOT = Path(__file__).parents[1]
DEMO = str(ROOT / "configs" / "demo.py")


def start(*arguments, script="main.py", cwd=ROOT, **environment):
    """Runs a script; returns its exit code, output and errors."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_every_field_has_a_comment_that_help_shows(monkeypatch):
    comments = config.describe_fields(cli.DEFAULTS)
    assert comments.keys() == config.flatten(default.get_config()).keys()
    assert all(comments.values())
    assert comments["defenses"] == "comma-separated; trained in this order"  # in the line above
    code, text, errors = start("--help", f"--config={DEMO}")
    assert (code, errors) == (0, "")
    assert "  --workdir: The run directory" in text
    assert f"  attack.norm=linf  {comments['attack.norm']}\n" in text
    assert "  data.name=phantoms  " in text  # the value of the file that is given
    assert set(re.findall(r"^  ([\w.]+)=", text, re.M)) == comments.keys()


def test_a_config_that_is_not_there_is_one_line_from_any_folder(tmp_path):
    for given in (["--config=configs/demo.py"], ["--config", "configs/demo.py"]):
        code, _, errors = start(*given, cwd=tmp_path)
        assert code == 2
        assert errors.splitlines() == [
            "error: --config=configs/demo.py: cannot be read; it must be the path of a file like"
            f" configs/demo.py, from the current folder {tmp_path}"
        ]


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(platform, tmp_path):
    if platform == "cuda" and Path("/dev/nvidia0").exists():
        pytest.skip("there is such a device")
    given = f"--config={DEMO}", f"--workdir={tmp_path / 'x'}"
    code, _, errors = start(*given, JAX_PLATFORMS=platform)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert errors.startswith(f"error: JAX_PLATFORMS={platform}: JAX finds no such device")
    assert "unset it" in errors


def test_ascii_output_gets_plain_characters():
    code = "from medadv_jax import cli; cli.print_in_any_encoding(); print('8 × ε … ü \\udcff')"
    for encoding, shown in (("ascii", r"8 x epsilon ... \xfc \udcff"), ("utf-8", "8 × ε … ü")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        )
        assert found.stdout.decode("utf-8").startswith(shown)


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
    code, _, errors = start("~/none", script="scripts/report.py", HOME=str(tmp_path))
    assert (code, str(tmp_path / "none") in errors) == (2, True)


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

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        multiprocessing.Lock()
    line = error_messages.explain(caught.value, None, tmp_path)
    assert line.startswith("/dev/shm:")
    assert str(tmp_path) not in line
