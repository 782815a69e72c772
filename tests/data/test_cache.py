import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medadv_jax.data.source
from configs.default import get_config
from medadv_jax.data.cache import INDEX_FILE
from medadv_jax.data.images import read_square
from medadv_jax.data.loader import list_dataset, load_dataset
from medadv_jax.errors import UserError


def _picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (level, 255 - level, 7)).save(path)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> Any:
    """`config.data` for 12 chest X-rays that really are coloured rectangles, 8 pixels wide."""
    monkeypatch.delenv("MEDADV_DATA_DIR", raising=False)
    for i in range(12):
        kind, name = (
            ("NORMAL", f"IM-{i:04d}-0001") if i % 2 else ("PNEUMONIA", f"person{i}_virus_{i}")
        )
        _picture(tmp_path / "set" / "chest_xray" / "train" / kind / f"{name}.png", 20 * i)
    config: Any = get_config().data
    config.dir, config.cache_dir = str(tmp_path / "set"), str(tmp_path / "cache")
    config.image_size = 8
    return config


def _files(settings) -> Path:
    return Path(settings.dir) / "chest_xray"


def _finished(settings) -> list[Path]:
    return [
        path.parent
        for path in Path(settings.cache_dir).glob(f"*/*/*/*/{INDEX_FILE}")
        if not path.parent.name.startswith("incomplete")
    ]


def _forbid_decoding(monkeypatch) -> None:
    def refuse(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(medadv_jax.data.source, "read_square", refuse)


def test_examples_images_and_hashes_belong_together(settings):
    dataset = load_dataset(settings)
    assert len(dataset.examples) == len(dataset.source) == 12 == list_dataset(settings).count
    files = {path.stem: path for path in _files(settings).rglob("*.png")}
    for i, example in enumerate(dataset.examples):
        content = files[example.id].read_bytes()
        np.testing.assert_array_equal(dataset.source[i], read_square(content, 8, "crop"))
        assert example.md5 == hashlib.md5(content).hexdigest()
        assert example.label == int(example.id.startswith("person"))
        assert example.source_split == "train"
    assert dataset.class_names == ("normal", "pneumonia")


def test_the_second_load_decodes_nothing_and_tells_the_same(settings, monkeypatch):
    (_files(settings) / "scan.png").write_bytes(b"")  # one bad file in 200 is within 1 %
    for i in range(187):
        _picture(_files(settings) / "NORMAL" / f"IM-{i:04d}-0002.png", i)
    first = load_dataset(settings)
    _forbid_decoding(monkeypatch)
    second = load_dataset(settings)
    assert second.examples == first.examples
    assert second.report == first.report
    assert second.report["rejected"] == [
        {
            "file": "scan.png",
            "reason": "a name of another kind, no folder NORMAL or PNEUMONIA above it",
        }
    ]
    assert second.report["files_listed"] == 200
    np.testing.assert_array_equal(second.source[5], first.source[5])


def _touch(settings):
    path = next(_files(settings).rglob("*.png"))
    os.utime(path, ns=(0, 12345))


def _add(settings):
    _picture(_files(settings) / "NORMAL" / "IM-0999-0001.png", 3)


def _remove(settings):
    next(_files(settings).rglob("*.png")).unlink()


def _rename(settings):
    path = next(_files(settings).rglob("IM*.png"))
    path.rename(path.with_name("IM-0777-0001.png"))


def _resize(settings):
    settings.image_size = 9


def _refit(settings):
    settings.fit = "pad"


@pytest.mark.parametrize("change", [_touch, _add, _remove, _rename, _resize, _refit])
def test_a_change_gets_a_cache_of_its_own(settings, change):
    before = load_dataset(settings)
    change(settings)
    after = load_dataset(settings)
    assert len(_finished(settings)) == 2
    assert len(after.examples) == len(before.examples) + {_add: 1, _remove: -1}.get(change, 0)
    assert after.source[0].shape == (settings.image_size,) * 2 + (3,)


def test_a_moved_folder_keeps_its_cache(settings, monkeypatch, tmp_path):
    load_dataset(settings)
    settings.dir = str(Path(settings.dir).rename(tmp_path / "elsewhere"))
    _forbid_decoding(monkeypatch)
    load_dataset(settings)


def test_a_build_that_dies_leaves_no_cache(settings, monkeypatch):
    calls = []

    def die(content, size, fit, white):
        calls.append(size)
        assert not _finished(settings)  # nothing has the final name while decoding goes on
        if len(calls) > 6:
            raise KeyboardInterrupt
        return read_square(content, size, fit)

    monkeypatch.setattr(medadv_jax.data.source, "read_square", die)
    with pytest.raises(KeyboardInterrupt):
        load_dataset(settings)
    assert not _finished(settings)
    monkeypatch.undo()
    assert len(load_dataset(settings).source) == 12


def test_what_a_killed_process_leaves_is_not_taken_for_a_cache(settings, monkeypatch):
    load_dataset(settings)
    (whole,) = _finished(settings)
    whole.rename(whole.with_name("incomplete.ABCDEF_1.0.0"))
    calls = []
    monkeypatch.setattr(
        medadv_jax.data.source, "read_square", lambda *args: calls.append(1) or read_square(*args)
    )
    assert len(load_dataset(settings).examples) == 12
    assert len(calls) == 12


def test_a_cache_without_its_index_is_built_anew(settings):
    first = load_dataset(settings)
    (_finished(settings)[0] / INDEX_FILE).unlink()
    assert load_dataset(settings).examples == first.examples


def test_another_process_that_is_faster_does_no_harm(settings, monkeypatch):
    inner = []

    def build_meanwhile(*args):
        monkeypatch.setattr(medadv_jax.data.source, "read_square", read_square)
        inner.append(load_dataset(settings))
        return read_square(*args)

    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one decoder waits while another build runs
    monkeypatch.setattr(medadv_jax.data.source, "read_square", build_meanwhile)
    outer = load_dataset(settings)
    assert inner[0].examples == outer.examples
    assert len(_finished(settings)) == 1
    np.testing.assert_array_equal(inner[0].source[7], outer.source[7])


def _damage(settings, count: int) -> None:
    for path in sorted(_files(settings).rglob("*.png"))[:count]:
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(("damaged", "stops"), [(0, False), (2, False), (3, True)])
def test_more_than_one_percent_of_bad_files_stops(settings, damaged, stops):
    for i in range(188):
        _picture(_files(settings) / "NORMAL" / f"IM-{i:04d}-0002.png", i)
    _damage(settings, damaged)
    if stops:
        with pytest.raises(
            UserError, match=r"3 of 200 files .*IM-0000-0002.png \(damaged"
        ) as caught:
            load_dataset(settings)
        assert "\n" not in str(caught.value)
        assert not _finished(settings)
        return
    dataset = load_dataset(settings)
    assert len(dataset.examples) == len(dataset.source) == 200 - damaged
    assert [item["reason"][:7] for item in dataset.report["rejected"]] == ["damaged"] * damaged
    for i in (0, 50, len(dataset.examples) - 1):  # images stay with their examples
        path = next(_files(settings).rglob(f"{dataset.examples[i].id}.png"))
        np.testing.assert_array_equal(dataset.source[i], read_square(path.read_bytes(), 8, "crop"))


def test_a_second_copy_of_the_tree_is_left_out(settings):
    """Kaggle's archive holds everything twice, and macOS' shadows of it."""
    for path in list(_files(settings).rglob("*.png")):
        copy = _files(settings) / "chest_xray" / path.relative_to(_files(settings))
        _picture(copy, 0)
        copy.write_bytes(path.read_bytes())
        shadow = _files(settings) / "__MACOSX" / f"._{path.name}"
        shadow.parent.mkdir(exist_ok=True)
        shadow.write_bytes(b"shadow")
    dataset = load_dataset(settings)
    assert len({example.md5 for example in dataset.examples}) == len(dataset.examples) == 12
    assert dataset.report["files_listed"] == 24
    assert [(item["count"], len(item["first"])) for item in dataset.report["dropped"]] == [(12, 3)]
    assert list_dataset(settings).count == 12


def test_equal_names_with_other_bytes_are_both_kept(settings):
    _picture(_files(settings) / "test" / "NORMAL" / "IM-0001-0001.png", 99)
    ids = [example.id for example in load_dataset(settings).examples]
    assert len(ids) == len(set(ids)) == 13


def test_names_off_the_grammar_are_counted_and_alone_in_their_group(settings):
    for name in ("a.png", "b.png"):
        _picture(_files(settings) / "NORMAL" / name, 50)
    dataset = load_dataset(settings)
    assert dataset.report["names_unparsed"] == 2
    groups = [example.group for example in dataset.examples]
    assert all(groups.count(f"file:NORMAL/{name}.png") == 1 for name in "ab")


def test_the_twice_filed_slide_is_reported(tmp_path, settings):
    for number in range(3):
        for subtype in ("DC", "LC"):
            name = f"SOB_M_{subtype}-14-13412-40-{number:03d}.png"
            _picture(tmp_path / "set" / "BreaKHis_v1" / name, number)
    settings.name = "breakhis"
    dataset = load_dataset(settings)
    assert [example.id[:8] for example in dataset.examples] == ["SOB_M_LC"] * 3
    assert dataset.report["dropped"][0]["count"] == 3
    assert dataset.report["files_listed"] == 6
    assert list_dataset(settings).count == 3


def test_the_folder_may_be_the_set_its_parent_or_the_environments(settings, monkeypatch):
    _picture(Path(settings.dir) / "chest_xray_original" / "NORMAL" / "IM-0005-0009.png", 1)
    from_parent = load_dataset(settings).examples
    settings.dir = str(_files(settings))
    assert load_dataset(settings).examples == from_parent
    monkeypatch.setenv("MEDADV_DATA_DIR", settings.dir)
    settings.dir = ""
    assert load_dataset(settings).examples == from_parent
    assert len(from_parent) == 12


@pytest.mark.parametrize(
    ("field", "value", "parts"),
    [
        ("dir", "{tmp}/none", ["data.dir", "none", "chest_xray/{train,val,test}"]),
        ("dir", "{tmp}/empty", ["data.dir", "empty", "chest_xray/{train,val,test}"]),
        ("name", "breakhis", ["data.dir", "set", "SOB_"]),
        (
            "name",
            "imagenet",
            ["data.name", "imagenet", "chest_xray14, folder, phantoms"],
        ),
        ("fit", "stretch", ["data.fit", "stretch", "crop, pad"]),
        ("cache_dir", "/proc/none", ["data.cache_dir", "/proc/none", "choose another"]),
    ],
)
def test_what_the_user_can_mend_is_one_line(settings, tmp_path, field, value, parts):
    (tmp_path / "empty").mkdir()
    settings[field] = value.format(tmp=tmp_path)
    with pytest.raises(UserError) as caught:
        load_dataset(settings)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_path_in_the_environment_is_named_when_it_is_wrong(settings, monkeypatch):
    monkeypatch.setenv("MEDADV_DATA_DIR", "/nowhere")
    settings.dir = ""
    with pytest.raises(UserError, match="MEDADV_DATA_DIR: no folder /nowhere"):
        list_dataset(settings)


def test_nothing_imports_tensorflow(settings):
    """In a fresh process: building, reading and loading."""
    code = f"""
import json, sys
from configs.default import get_config
from medadv_jax.data.loader import load_dataset, make_loader
config = get_config().data
config.update(json.loads({settings.to_json()!r}))
dataset = load_dataset(config)
assert len(list(make_loader(dataset, range(12), 5, shuffle_seed=0))) == 3
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")]
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_pipes_devices_and_sparse_files_are_rejected_by_name(settings, tmp_path):
    for i in range(400):
        _picture(_files(settings) / "NORMAL" / f"IM-{i:04d}-0002.png", i % 256)
    place = _files(settings) / "train" / "NORMAL"
    os.mkfifo(place / "IM-0901-0001.png")
    (place / "IM-0902-0001.png").symlink_to("/dev/zero")
    for folder in (place, _files(settings)):  # two of one name and size are compared, if readable
        with (folder / "IM-0903-0001.png").open("wb") as file:
            file.truncate(6 << 30)
    dataset = load_dataset(settings)
    assert {item["file"]: item["reason"] for item in dataset.report["rejected"]} == {
        "IM-0903-0001.png": "over 256 MiB",
        "train/NORMAL/IM-0901-0001.png": "not a regular file",
        "train/NORMAL/IM-0902-0001.png": "not a regular file",
        "train/NORMAL/IM-0903-0001.png": "over 256 MiB",
    }


def test_no_changed_byte_of_an_index_goes_unnoticed(settings):
    load_dataset(settings)
    (path,) = (folder / INDEX_FILE for folder in _finished(settings))
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        with pytest.raises(UserError, match=r"is damaged; delete it|damaged: its SHA-256"):
            load_dataset(settings)
