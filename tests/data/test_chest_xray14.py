"""ChestX-ray14 in the layout of the public download, of generated images."""

import csv

import numpy as np
import pytest

from medadv_jax.data.chest_xray14 import FINDINGS
from medadv_jax.data.loader import list_dataset, load_dataset, make_loader
from medadv_jax.data.phantoms.findings import write_chest_xray14
from medadv_jax.data.splits import SPLITS, make_splits
from medadv_jax.errors import UserError
from tests.helpers.tiny import tiny_config

TABLE = "Data_Entry_2017.csv"


@pytest.fixture
def folder(tmp_path):
    write_chest_xray14(tmp_path / "nih", 90, 32)
    return tmp_path / "nih"


def _config(folder, split="official"):
    config = tiny_config().data
    config.name, config.dir, config.cache_dir = "chest_xray14", str(folder), str(folder / "cache")
    config.split = split
    return config


def _rows(folder):
    with (folder / TABLE).open() as file:
        return {row["Image Index"]: row for row in csv.DictReader(file)}


def test_labels_and_patients_are_those_of_the_table(folder):
    dataset, rows = load_dataset(_config(folder)), _rows(folder)
    assert list_dataset(_config(folder)) == (90, FINDINGS, True)
    assert len(dataset.examples) == len(rows) == 90
    batch = next(make_loader(dataset, range(90), 90, shuffle_seed=None))
    for example, target, label in zip(
        dataset.examples, batch["label"], dataset.labels, strict=True
    ):
        row = rows[f"{example.id}.png"]
        named = {FINDINGS[k] for k in np.flatnonzero(target)}
        assert named == {*row["Finding Labels"].split("|")} - {"No Finding"}
        assert label == bool(named)
        assert example.group == f"patient-{row['Patient ID']}"
    assert batch["label"].sum(axis=1).max() > 1  # several at once


@pytest.mark.parametrize("split", ["patient", "official"])
def test_no_patient_is_in_two_splits_even_if_the_official_lists_share_some(folder, split):
    """The list of test images gets one image more of a patient who is in training."""
    rows = _rows(folder)
    tested = (folder / "test_list.txt").read_text().split()
    by_patient = {}
    for name, row in rows.items():
        by_patient.setdefault(row["Patient ID"], []).append(name)
    moved = next(n for n in by_patient.values() if len(n) > 1 and n[0] not in tested)
    (folder / "test_list.txt").write_text("\n".join([*tested, moved[0]]))
    rest = (folder / "train_val_list.txt").read_text().replace(moved[0], "")
    (folder / "train_val_list.txt").write_text(rest)
    config = _config(folder, split)
    dataset = load_dataset(config)
    splits = make_splits(dataset.examples, config, 0, dataset.strata)
    patients, ids = (
        {name: {of(dataset.examples[i]) for i in getattr(splits, name)} for name in SPLITS}
        for of in (lambda e: e.group, lambda e: f"{e.id}.png")
    )
    for one in SPLITS:
        assert patients[one]
        assert all(patients[one].isdisjoint(patients[other]) for other in SPLITS if other != one)
    if split == "official":
        assert ids["test"] == {*tested, moved[0]}
        assert ids["train"] | ids["validation"] == {*rows} - {*tested} - {*moved}


def test_a_part_of_the_download_is_enough(folder):
    for path in (folder / "images_002" / "images").iterdir():
        path.unlink()
    dataset = load_dataset(_config(folder))
    assert len(dataset.examples) == 45
    assert "45 images of the table are not in the folder" in dataset.report["notes"]


def test_what_does_not_fit_is_named_in_one_line(folder):
    text = (folder / TABLE).read_text()
    first, second = [*_rows(folder)][:2]
    for wrong, reason in (
        (text.replace(",Patient ID", ",Patient"), "has no column 'Patient ID'"),
        (text.replace(f"{first},", f"{first},Gout|", 1), "unknown finding 'Gout'"),
        (text.replace(f"{first},", "other.png,", 1), f"{first} .not in the table"),
        (text.replace(f"{second},", f"{second},,", 1), "line 3 lacks a cell"),
    ):
        (folder / TABLE).write_text(wrong)
        with pytest.raises(UserError, match=reason) as refused:
            load_dataset(_config(folder))
        assert "\n" not in str(refused.value)
    (folder / TABLE).unlink()
    with pytest.raises(UserError, match=r"config.data.dir=.*: no Data_Entry_2017\*.csv there"):
        load_dataset(_config(folder))
