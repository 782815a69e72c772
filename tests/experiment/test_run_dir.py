"""A workdir has one config, one set of images and one process."""

import json
import signal
import subprocess
import sys

import pytest

from medadv_jax.config import set_field
from medadv_jax.errors import UserError
from medadv_jax.experiment import run_dir
from medadv_jax.files import write_json
from tests.helpers.tiny import age_config, tiny_config

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+"); fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 1 on elsewhere"); file.flush(); print("held", flush=True); time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        with (
            pytest.raises(UserError, match="process 1 on elsewhere is at work in it"),
            run_dir.locked(tmp_path),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".lock").read_text() == "process 1 on elsewhere"  # stale, and no obstacle
    with run_dir.locked(tmp_path):
        assert "elsewhere" not in (tmp_path / ".lock").read_text()
        with pytest.raises(UserError, match="is at work"), run_dir.locked(tmp_path):
            pass
    with run_dir.locked(tmp_path):  # given back
        pass


def test_stages_of_a_run_that_is_at_work_are_not_taken(tmp_path):
    config, other = tiny_config(), tmp_path / "other"
    with run_dir.locked(other):
        run_dir.claim(other, config)
        (other / "checkpoints" / "base").mkdir(parents=True)
        config.reuse = str(other)
        with pytest.raises(UserError, match=r"other: process \d+ on .* is at work in it"):
            run_dir.reuse_stages(tmp_path / "new", config)
    (tmp_path / "new" / "checkpoints" / ".base" / "3").mkdir(parents=True)  # of a killed copy
    run_dir.reuse_stages(tmp_path / "new", config)
    assert not list((tmp_path / "new" / "checkpoints" / "base").iterdir())


def test_fields_that_change_no_result_and_new_ones_do_not_part_a_run_from_its_workdir(tmp_path):
    config = tiny_config()
    run_dir.claim(tmp_path, config)
    path = tmp_path / "config.json"
    age_config(tmp_path)
    saved = json.loads(path.read_text())
    saved["versions"]["jax"] = "0.1"
    write_json(path, saved)
    assert run_dir.claim(tmp_path, config) == [f"{tmp_path} was begun with other versions"]
    config.deterministic = True
    with pytest.raises(UserError, match=r"config.deterministic=True \(there: False\)"):
        run_dir.claim(tmp_path, config)


def test_a_stage_is_reused_where_no_relevant_field_differs(tmp_path):
    other, config = tmp_path / "other", tiny_config()
    run_dir.claim(other, config)
    age_config(other)
    for stage in ("base", "adversarial"):
        (other / "checkpoints" / stage).mkdir(parents=True)
    config.reuse, config.eval.restarts, config.compile_cache = str(other), 3, "elsewhere"
    stages = {
        "attack.epsilon": ["base"],  # irrelevant to the stage that is not attacked
        "eval.validation_attack": ["base"],  # chooses the checkpoint of the other one
        "eval.attacks": ["base", "adversarial"],
        "purifier.width": ["base", "adversarial"],
    }
    for number, (field, expected) in enumerate(stages.items()):
        changed = tiny_config()
        changed.update(config)
        value = {"eval.validation_attack": "bim", "eval.attacks": "bim"}.get(field, 0.5)
        set_field(changed, field, str(value))
        notes = run_dir.reuse_stages(tmp_path / str(number), changed)
        assert [note.partition(":")[0] for note in notes] == expected, field
        copied = (tmp_path / str(number) / "checkpoints").iterdir()
        assert {path.name for path in copied} == {*expected}
    config.train.learning_rate = 0.5
    with pytest.raises(UserError, match="no stage would be the same: train"):
        run_dir.reuse_stages(tmp_path / "none", config)


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    path = tmp_path / "splits.json"
    content = {"train": ["a", "b"], "validation": ["c"], "test": ["d"], "notes": ["new"]}
    run_dir.refuse_other_images(path, content)
    write_json(path, content)
    run_dir.refuse_other_images(path, content | {"notes": []})
    for other in ({"train": ["a"]}, {"train": ["b", "a"]}, {"test": ["e"]}):
        with pytest.raises(UserError, match="began with other images"):
            run_dir.refuse_other_images(path, content | other)
    now = content | {"md5": {"a": "1", "b": "2", "c": "3", "d": "4"}}
    run_dir.refuse_other_images(path, now)  # an earlier version kept no md5 sums
    write_json(path, now)
    run_dir.refuse_other_images(path, now)
    changed = now | {"md5": now["md5"] | {"d": "5"}}  # pyright: ignore[reportOperatorIssue]
    with pytest.raises(UserError, match="1 of 4 have another content now, as d"):
        run_dir.refuse_other_images(path, changed)
    # A run that reuses only the training of another may test on other images.
    run_dir.refuse_other_images(path, changed | {"test": ["d", "e"]}, ("train", "validation"))
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        run_dir.refuse_other_images(path, content)


def test_nothing_of_a_user_is_touched_and_leftovers_go_only_from_a_folder_of_ours(tmp_path):
    config = tiny_config()
    half = tmp_path / ".results.csv.77.medadv-tmp"
    mine = [tmp_path / name for name in (".notes.2024", ".viminfo.1", ".config.json.5")]
    for path in (half, *mine):
        path.write_text("mine")
    with run_dir.locked(tmp_path):
        assert half.exists()
        run_dir.claim(tmp_path, config)
        assert not half.exists()
    half.write_text("half")
    config.seed = 7
    with run_dir.locked(tmp_path), pytest.raises(UserError, match="another config"):
        run_dir.claim(tmp_path, config)
    assert half.exists()
    assert {path.read_text() for path in mine} == {"mine"}
    other = tmp_path / "other"
    other.mkdir()
    (other / ".lock").write_text("my own")
    with pytest.raises(UserError, match="not a lock of this program"), run_dir.locked(other):
        pass
    assert (other / ".lock").read_text() == "my own"


def test_a_damaged_record_stops_the_run_before_anything_is_written(tmp_path):
    run_dir.claim(tmp_path, tiny_config())
    path = tmp_path / "self_checks.json"
    write_json(path, {"checks": []})
    path.write_text(path.read_text().replace("checks", "chicks"))
    with pytest.raises(UserError, match=r"self_checks\.json: damaged: its SHA-256"):
        run_dir.claim(tmp_path, tiny_config())
    path.unlink()
    run_dir.claim(tmp_path, tiny_config())  # as the message says
    (tmp_path / "digests.json").unlink()
    with pytest.raises(UserError, match=r"digests\.json: is missing"):
        run_dir.claim(tmp_path, tiny_config())
