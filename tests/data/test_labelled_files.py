"""Labels of a folder's images for a given classifier: by names of files, by folders, or refused."""

import pytest
from PIL import Image

from medadv_jax.data.labelled_files import label_files
from medadv_jax.errors import UserError


def _write(folder, *paths):
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / path)


def _labels(found):
    return {file.path: parsed.label for file, parsed in found.files}


def test_the_test_split_of_the_chest_x_rays_is_taken_with_its_patients(tmp_path):
    _write(
        tmp_path, "train/NORMAL/IM-0001-0001.jpeg", "test/NORMAL/IM-0002-0001.jpeg",
        "test/PNEUMONIA/person1_virus_2.jpeg",
    )  # fmt: skip
    found = label_files(tmp_path, ("normal", "pneumonia"))
    assert found.part == "test"
    assert _labels(found) == {
        "test/NORMAL/IM-0002-0001.jpeg": 0, "test/PNEUMONIA/person1_virus_2.jpeg": 1,
    }  # fmt: skip
    assert [parsed.group for _, parsed in found.files] == ["IM-0002", "person1"]


def test_classes_are_matched_by_name_not_by_order(tmp_path):
    _write(tmp_path, "Alpha/1.png", "beta/2.png", "beta/3.png")
    found = label_files(tmp_path, ("beta", "gamma", "ALPHA"))
    assert found.part == "all"
    assert _labels(found) == {"Alpha/1.png": 2, "beta/2.png": 0, "beta/3.png": 0}


def test_copies_of_a_file_count_once(tmp_path):
    _write(tmp_path, "x/a/1.png", "x/b/2.png")
    (tmp_path / "x/b/1.png").write_bytes((tmp_path / "x/a/1.png").read_bytes())
    assert len(label_files(tmp_path / "x", ("a", "b")).files) == 2


def test_what_does_not_match_is_one_line(tmp_path):
    _write(tmp_path, "own/a/1.png", "own/c/2.png", "xrays/NORMAL/1.png", "xrays/COVID/2.png")
    _write(tmp_path, "mixed/a/1.png", "mixed/2.png")
    cases = (
        ("own", ("a", "b"), "--data=.*own: the class c is none of the model's .a, b."),
        ("mixed", ("a", "b"), "the class of 2.png, in no folder of a class, is none"),
        ("xrays", ("normal", "pneumonia"), "1 files tell none of .* as COVID/2.png"),
        ("nowhere", ("a", "b"), "--data=.*nowhere: no such folder"),
    )
    for folder, classes, text in cases:
        with pytest.raises(UserError, match=text) as refused:
            label_files(tmp_path / folder, classes)
        assert "\n" not in str(refused.value)
