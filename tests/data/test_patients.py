"""Which images are of one patient, under every published name, and what is said if nobody knows."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.default import get_config
from medadv_jax.data.breakhis import BreakHis
from medadv_jax.data.chest_xray import ChestXray
from medadv_jax.data.examples import Example, KnownPatients
from medadv_jax.data.loader import Dataset, load_dataset
from medadv_jax.data.splits import make_splits
from medadv_jax.errors import UserError

MARKS = ["", "_aug1", "_0_4711", "_jpeg.rf.0c1d2e3f", " (1)", " - Copy", "_rot90_flip"]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("before", ["", "Copy of ", "aug_", "PNEUMONIA_original_"])
@pytest.mark.parametrize("change", [str, str.upper, str.lower])
@pytest.mark.parametrize(
    ("stem", "group", "label", "subtype"),
    [
        ("IM-0115-0001", "IM-0115", 0, ""),
        ("IM-0115-0001-0002", "IM-0115", 0, ""),
        ("NORMAL2-IM-0381-0001", "NORMAL2-IM-0381", 0, ""),
        ("person12_bacteria_46", "person12", 1, "bacteria"),
        ("person12_virus_48", "person12", 1, "virus"),
        ("BACTERIA-1008087-0001", "patient-1008087", 1, "bacteria"),
        ("VIRUS-1008087-0002", "patient-1008087", 1, "virus"),
        ("NORMAL-1003233-0001", "patient-1003233", 0, ""),
    ],
)
def test_copies_of_an_x_ray_are_of_its_patient(mark, before, change, stem, group, label, subtype):
    parsed = ChestXray.parse(f"train/{change(before + stem + mark)}.jpeg")
    assert (parsed.group, parsed.label, parsed.subtype) == (group, label, subtype)
    assert parsed.follows_pattern == (not before and not mark)


@pytest.mark.parametrize("mark", MARKS)
def test_copies_of_a_slide_are_of_its_case(mark):
    for before in ("", "Copy of ", "aug_"):
        parsed = BreakHis.parse(f"{before}SOB_B_A-14-22549AB-100-003{mark}.png")
        assert (parsed.group, parsed.magnification, parsed.subtype) == ("14-22549", 100, "A")
        assert BreakHis.drop_reason(f"{before}SOB_M_DC-14-13412-100-003{mark}.png")


def test_a_person_without_a_finding_has_the_label_of_its_folder():
    parsed = ChestXray.parse("NORMAL/person7_1.jpeg")
    assert (parsed.group, parsed.label, parsed.follows_pattern) == ("person7", 0, False)


@pytest.mark.parametrize(
    "stem", ["scan 12", "00017", "superperson12", "IM-43", "VIM-0115-0001", "aug_0_4711"]
)
def test_other_names_tell_no_patient(stem):
    assert ChestXray.parse(f"NORMAL/{stem}.jpeg").group == f"file:NORMAL/{stem}.jpeg"


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"), ("Training", "train"), ("val", "val"), ("valid", "val"),
        ("Validation", "val"), ("dev", "val"), ("TEST", "test"), ("testing", "test"), ("x", ""),
    ],
)  # fmt: skip
def test_folders_of_published_splits(folder, split):
    assert ChestXray.parse(f"{folder}/NORMAL/IM-0115-0001.jpeg").source_split == split


def _save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 16), np.uint8)
    Image.fromarray(pixels).save(path)


def _load(folder: Path, **fields: Any) -> tuple[Any, Dataset]:
    config: Any = get_config().data
    config.update({"name": "chest_xray", "dir": str(folder), "cache_dir": f"{folder}/../cache"})
    config.update({"image_size": 8, "per_class": 0, **fields})
    return config, load_dataset(config)


def _chest(folder: Path, unknown: int, count: int = 100) -> None:
    """Writes `count` images of each class; the patients of the first normal ones are unknown."""
    for i in range(count):
        name = f"scan {i}" if i < unknown else f"IM-{i:04}-0001"
        _save(folder / "train" / "NORMAL" / f"{name}.png", i)
        _save(folder / "train" / "PNEUMONIA" / f"person{i}_virus_{i}.png", 1000 + i)


@pytest.mark.parametrize(
    ("unknown", "split", "done"),
    [
        (2, "patient", "patient"),  # 1 % of 200
        (3, "patient", "image: patients unknown"),
        (3, "image", "image: patients unknown"),
        (0, "image", "image"),
    ],
)
def test_a_split_says_whether_patients_are_known(tmp_path, unknown, split, done):
    _chest(tmp_path / "set", unknown)
    config, dataset = _load(tmp_path / "set", split=split)
    splits = make_splits(dataset.examples, config, 0)
    content = splits.to_json(dataset.examples)
    assert (content["asked"], content["done"]) == (split, done)
    assert content["audit"]["patients_unknown"] == dataset.report["patients_unknown"] == unknown
    said = f"split by image: patients unknown for {unknown} of 200"
    assert any(said in note for note in splits.notes) == done.endswith("unknown")


def test_an_official_split_says_that_patients_are_unknown():
    unknown = Example("a", 0, "file:a", 0, "", "m")
    assert KnownPatients.of([unknown]).describe("official") == "official: patients unknown"
    known = dataclasses.replace(unknown, group="IM-0001")
    assert KnownPatients.of([known] * 99 + [unknown]).describe("official") == "official"


@pytest.mark.parametrize(("wrong", "refused"), [(0, False), (2, False), (3, True)])
def test_names_against_folders(tmp_path, wrong, refused):
    _chest(tmp_path / "set", 0)
    for i in range(wrong):
        name = f"IM-{i:04}-0001.png"
        (tmp_path / "set/train/NORMAL" / name).rename(tmp_path / "set/train/PNEUMONIA" / name)
    said = f"the name and the folder of {wrong} of 200 images contradict each other"
    if refused:
        with pytest.raises(UserError, match=f"{said}, as train/PNEUMONIA/IM-0000-0001.png"):
            _load(tmp_path / "set")
        return
    _, dataset = _load(tmp_path / "set")
    assert dataset.report["contradictions"] == wrong
    assert any(said in note for note in dataset.report["notes"]) == bool(wrong)
    assert dataset.labels.sum() == 100  # the names are taken


def test_validation_folders_are_used_and_what_is_outside_is_said(tmp_path):
    for k, (folder, count) in enumerate((("train", 20), ("valid", 7), ("test", 8), ("extra", 3))):
        for i in range(100 * k, 100 * k + count):
            _save(tmp_path / "set" / folder / "NORMAL" / f"IM-{i:04}-0001.png", i)
            _save(tmp_path / "set" / folder / "PNEUMONIA" / f"person{i}_virus_{i}.png", 1000 + i)
    config, dataset = _load(tmp_path / "set", split="official")
    splits = make_splits(dataset.examples, config, 0)
    assert len(splits.train) + len(splits.validation) == 54
    assert len(splits.test) == 16
    assert any("16 test images, not the 624 published" in note for note in splits.notes)
    assert "6 images are in no published split and are not used" in splits.notes


def test_names_of_windows_and_names_that_are_not_utf8_are_read(tmp_path):
    folder = tmp_path / "set"
    for i in range(6):
        _save(folder / f"chest_xray\\train\\NORMAL\\IM-{i:04}-0001.png", i)
        _save(folder / f"chest_xray\\train\\PNEUMONIA\\person{i}_virus_{i}.png", 100 + i)
    (folder / "chest_xray\\__MACOSX\\train\\NORMAL\\._IM-0000-0001.png").write_bytes(b"x")
    _save(folder / "NORMAL" / "1.png", 99)
    latin = os.fsencode(folder / "NORMAL") + b"/R\xf6ntgen.png"
    os.rename(folder / "NORMAL" / "1.png", latin)
    _, dataset = _load(folder)
    by_id = {example.id: example for example in dataset.examples}
    assert {*by_id} == {
        *(f"IM-{i:04}-0001" for i in range(6)), *(f"person{i}_virus_{i}" for i in range(6)),
        "R\\xf6ntgen",
    }  # fmt: skip
    assert by_id["IM-0003-0001"].source_split == "train"
    assert by_id["R\\xf6ntgen"].group == "file:NORMAL/R\\xf6ntgen.png"
