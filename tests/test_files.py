"""Records are verified; names of any origin stay in their folder."""

import json
import shutil
from pathlib import Path

import pytest

from medadv_jax import files
from medadv_jax.errors import UserError


class Killed(BaseException):
    """Nothing cleans up after it."""


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"accuracy": 0.75})
    return path


def test_every_flipped_bit_of_a_record_or_of_its_digest_is_noticed_or_harmless(record):
    for path in (record, record.parent / files.DIGESTS):
        content = path.read_bytes()
        noticed = 0
        for bit in range(8 * len(content)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                found = files.read_json(record)
            except UserError as error:
                noticed += f"{path}: damaged" in str(error)
            else:
                assert found == {"accuracy": 0.75}
        path.write_bytes(content)
        assert noticed > 7 * len(content)


def test_a_record_without_a_digest_is_read(record):
    (record.parent / files.DIGESTS).unlink()
    record.write_text('{"accuracy": 0.5}')
    assert files.read_json(record) == {"accuracy": 0.5}


def test_a_lost_entry_is_damage(record):
    path = record.parent / files.DIGESTS
    content = json.loads(path.read_text())
    del content["files"]["a.json"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"digests\.json: damaged"):
        files.read_json(record)


@pytest.mark.parametrize("moment", range(6))
def test_killed_while_writing_file_and_digest_belong_together(
    record, tmp_path, monkeypatch, moment
):
    """Killed before or after any of the three renames of a write."""
    rename, seen = Path.replace, []

    def replace(self, target):
        if len(seen) == moment // 2 and moment % 2 == 0:
            raise Killed
        seen.append(target)
        rename(self, target)
        if len(seen) == moment // 2 + 1 and moment % 2 == 1:
            raise Killed

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        files.write_json(record, {"accuracy": 0.5})
    monkeypatch.undo()
    assert files.read_json(record)["accuracy"] in (0.75, 0.5)
    files.write_json(record, {"accuracy": 0.25})
    assert list(files.read_digests(tmp_path)) == ["a.json"]
    assert len(files.read_digests(tmp_path)["a.json"]) == 1


def test_a_record_of_an_earlier_version_is_replaced(record):
    """Killed as it gets its first digest, the old content is still read."""
    (record.parent / files.DIGESTS).unlink()
    old = record.read_bytes()
    files.write_json(record, {"accuracy": 0.5})
    assert files.sha256(old) not in files.read_digests(record.parent)["a.json"]
    shutil.copy(record, record.parent / "b.json")
    files.verify_records(record.parent)


def test_a_file_name_stays_in_its_folder(tmp_path):
    for text in ("x/../../evil", "..", ".", "", "/etc/passwd", "a\0b", "ä" * 300, ".lock", "a\\b"):
        name = files.file_name(text)
        assert (tmp_path / name).parent == tmp_path
        assert not name.startswith(".")
        assert 0 < len(name) <= 100
        (tmp_path / name).write_text("")
    assert files.file_name("folds_chest_xray_0-seed.1") == "folds_chest_xray_0-seed.1"


def test_validation_under_attack_has_its_own_name_in_old_runs_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    old = {"epoch": 1, "accuracy": 0.9, "validation_accuracy": 0.5, "validation_loss": 1.0}
    new = {"epoch": 2, "validation_adversarial_accuracy": 0.6, "validation_adversarial_loss": 1.0}
    lines = [{"defense": "base", **old}, {"defense": "hybrid", **old}, {"defense": "hybrid", **new}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base, hybrid, resumed = files.read_metrics(path)
    assert (base, resumed) == (lines[0], lines[2])
    assert hybrid == {
        "defense": "hybrid",
        "epoch": 1,
        "accuracy": 0.9,
        "validation_adversarial_accuracy": 0.5,
        "validation_adversarial_loss": 1.0,
    }
    assert files.read_metrics(tmp_path / "missing") == []
    path.write_text("{")
    with pytest.raises(UserError, match=r"metrics.jsonl: damaged"):
        files.read_metrics(path)
