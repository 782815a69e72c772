"""A user's table of images: encodings, separators, attributes; one line for every wrong one."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from medadv_jax.config import Config
from medadv_jax.data.loader import load_dataset
from medadv_jax.data.splits import make_splits
from medadv_jax.errors import UserError
from tests.data.folder.test_folder import save, settings  # noqa: F401

HEADER = "file,label,patient,split,site\n"


def _write(config: Config, text: str | bytes, count: int = 12) -> Path:
    """Writes images img/0.png … and a table beside their folder."""
    folder = Path(config.dir)
    for i in range(count):
        save(folder / "img" / f"{i}.png", 20 * (i % 4))
    table = folder / "table.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    config.csv, config.dir = str(table), ""
    return folder


def _lines(count: int = 12) -> str:
    """Four classes, a patient for each image, the first of each class in test, two sites."""
    return HEADER + "".join(
        f"img/{i}.png,grade {i % 4},p{i},{'train' if i > 3 else 'Test'},{'AB'[i % 2]}\n"
        for i in range(count)
    )


def test_a_table_of_four_classes_with_patients(settings):  # noqa: F811
    _write(settings, _lines(24), 24)
    dataset = load_dataset(settings)
    assert dataset.class_names == ("grade 0", "grade 1", "grade 2", "grade 3")
    for example in dataset.examples:
        i = int(example.id)
        assert (example.label, example.group) == (i % 4, f"p{i}")
        assert example.source_split == ("train" if i > 3 else "test")
        assert example.attributes == {"site": "AB"[i % 2]}
    settings.split = "official"
    splits = make_splits(dataset.examples, settings, 0, dataset.class_names)
    assert {dataset.examples[i].id for i in splits.test} == {"0", "1", "2", "3"}
    content = splits.to_json(dataset.examples)
    assert content["attributes"]["site"] == {str(i): "AB"[i % 2] for i in range(24)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_encodings_and_separators(settings, encoding, separator):  # noqa: F811
    text = _lines().replace(",", separator).replace("grade 1", "Grad é").replace("\n", "\r\n")
    _write(settings, text.replace("file", "File").encode(encoding))
    assert load_dataset(settings).class_names == ("Grad é", "grade 0", "grade 2", "grade 3")


def test_the_header_alone_chooses_the_separator(settings):  # noqa: F811
    site = "A" + 20 * ";A"
    _write(settings, _lines().replace(",A\n", f",{site}\n"))
    assert {e.attributes["site"] for e in load_dataset(settings).examples} == {site, "B"}


def test_paths_start_from_the_folder_that_is_given(settings, tmp_path):  # noqa: F811
    folder = _write(settings, _lines().replace("img/", "./img\\"))
    table = Path(settings.csv).rename(tmp_path / "elsewhere.csv")
    settings.csv, settings.dir = str(table), str(folder)
    assert len(load_dataset(settings).examples) == 12


def test_images_without_a_suffix_are_read(settings):  # noqa: F811
    folder = _write(settings, _lines().replace(".png", ""))
    for path in (folder / "img").iterdir():
        path.rename(path.with_suffix(""))
    assert len(load_dataset(settings).examples) == 12


def test_a_patient_of_the_table_counts_before_the_pattern(settings):  # noqa: F811
    _write(settings, _lines().replace(",p3,", ",,"))
    settings.group_pattern = r"\d+"
    groups = {example.id: example.group for example in load_dataset(settings).examples}
    assert (groups["2"], groups["3"]) == ("p2", "3")


def test_images_without_a_patient_are_counted(settings):  # noqa: F811
    _write(settings, _lines().replace(",p3,", ",,"))
    dataset = load_dataset(settings)
    assert dataset.report["patients_unknown"] == 1
    assert dataset.examples[3 + 2].group.startswith(("p", "file:"))


def test_a_changed_table_gets_a_cache_of_its_own(settings):  # noqa: F811
    folder = _write(settings, _lines())
    before = load_dataset(settings).labels
    (folder / "table.csv").write_text(_lines().replace("grade 0", "grade 5"))
    assert not np.array_equal(load_dataset(settings).labels, before)
    (folder / "table.csv").write_text(_lines().replace(",A\n", ",C\n"))
    assert {e.attributes["site"] for e in load_dataset(settings).examples} == {"B", "C"}


ROW = "img/0.png,a,p,train,A\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "no column file and no column label; its first line names none"),
        ("a;b\n1;2\n", "no column file and no column label; its first line names a, b"),
        ("file,class\nimg/0.png,a\n", "no column label; its first line names file, class"),
        ("file,label,Label\n", "two columns are named 'label'"),
        ("file,label,\nimg/0.png,a,\n", "column 3 has no name"),
        (HEADER, "no images; below the header"),
        (_lines() + "img/0.png,a\n", "line 14 has 2 cells, the header 5"),
        (_lines() + ",a,p,train,A\n", "line 14 has no file"),
        (_lines().replace("grade 2,p6", " ,p6"), "line 8 has no label"),
        (_lines().replace("Test", "holdout"), "line 2: split 'holdout' is unknown; known are"),
        (_lines() + "img/0.png,grade 0,p0,Test,A\n", "line 14 repeats line 2: img/0.png"),
        (_lines() + "./img/0.png,grade 1,p0,Test,A\n",
         "line 14 contradicts line 2: label of img/0.png is 'grade 1' and 'grade 0'"),
        (_lines() + "img/0.png,grade 0,p7,Test,A\n", "line 14 contradicts line 2: patient of"),
        (_lines() + "img/0.png,grade 0,p0,Test,B\n", "line 14 contradicts line 2: attributes of"),
        (_lines().replace("img/5", "img/55"), r"1 of 12 files are not in .*img/55.png \(line 7\)"),
        (_lines().replace("img/5.png", "img"), r"1 of 12 files are not in .*img \(line 7\)"),
        (_lines().replace("img/5", "../img/5"), r"line 7: ../img/5.png leads out of"),
        (_lines().replace("img/5", "/etc/5"), "line 7: /etc/5.png leads out of"),
        (_lines().replace("img/5", "C:\\img\\5"), r"line 7: C:\\img\\5.png leads out of"),
        (_lines().replace("img/5", "img\\..\\..\\5"), "line 7: .* leads out of"),
        (_lines().replace("grade 2", "grade\x1b[31m"), "line 4: the cell of 'label' has control"),
        (_lines().replace("grade 2", '"grade\n2"'), "line 5: the cell of 'label' has control"),
        (_lines().replace(",A\n", f",{'x' * 1001}\n"), "line 2: the cell of 'site' has"),
        (_lines().replace("img/5.png", '"img/5"png'), "line 7 is no line of a CSV"),
        (_lines().replace("grade 2", '"grade'), "is no line of a CSV|has control"),
        (HEADER + "img/0.png,a,p,train,A\n", r"one class \(a\), at least two are needed"),
        (_lines().replace("grade 1", "Grade  0"), "'Grade  0' and 'grade 0' look the same"),
        (_lines().replace("grade 1", "gr\u00e4de").replace("grade 2", "gra\u0308de"),
         "look the same"),
        (_lines().encode("latin-1") + b"img/1.png,\xe9,,,\n", r"cannot be read as text \("),
        (b"PK\x03\x04" + bytes(range(128, 200)), "cannot be read as text"),
        (HEADER.replace("site", "sex\x07") + ROW, "control characters|no column|one class"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_line(settings, text, line):  # noqa: F811
    _write(settings, text)
    with pytest.raises(UserError) as caught:
        load_dataset(settings)
    message = str(caught.value)
    assert message.startswith(f"config.data.csv={settings.csv}: ")
    assert re.search(line, message), message
    assert message.isprintable(), message


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "large"])
def test_a_table_that_is_no_file_is_one_line(settings, tmp_path, kind):  # noqa: F811
    settings.dir, settings.csv = "", str(tmp_path / "x.csv")
    if kind == "folder":
        (tmp_path / "x.csv").mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / "x.csv")
    elif kind == "large":
        with (tmp_path / "x.csv").open("wb") as file:
            file.truncate(65 << 20)
    with pytest.raises(UserError, match=r"x.csv: cannot be read as text") as caught:
        load_dataset(settings)
    assert "\n" not in str(caught.value)


def test_a_row_says_nothing_that_is_executed(settings):  # noqa: F811
    text = _lines().replace("grade 1", "=HYPERLINK(1)").replace("grade 2", "{{7*7}}")
    _write(settings, text)
    assert load_dataset(settings).class_names[0] == "=HYPERLINK(1)"
