from pathlib import Path

import pytest
from PIL import Image

from configs.default import get_config
from medadv_jax.data.breakhis import BreakHis
from medadv_jax.data.chest_xray import ChestXray
from medadv_jax.data.loader import list_dataset, load_dataset
from medadv_jax.data.source import ParsedName, UnlabelledError, example_ids, list_files


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SOB_B_A-14-22549AB-40-001.png", ParsedName(0, "14-22549", 40, subtype="A")),
        ("SOB_B_A-14-22549CD-100-001.png", ParsedName(0, "14-22549", 100, subtype="A")),
        ("SOB_B_A-14-22549G-200-001.png", ParsedName(0, "14-22549", 200, subtype="A")),
        ("SOB_B_TA-14-16184-400-012.png", ParsedName(0, "14-16184", 400, subtype="TA")),
        ("SOB_B_TA-14-16184CD-400-012.png", ParsedName(0, "14-16184", 400, subtype="TA")),
        ("SOB_B_PT-14-29315EF-40-003.png", ParsedName(0, "14-29315", 40, subtype="PT")),
        ("SOB_M_MC-14-19979-40-001.png", ParsedName(1, "14-19979", 40, subtype="MC")),
        ("SOB_M_MC-14-19979C-40-001.png", ParsedName(1, "14-19979", 40, subtype="MC")),
        ("SOB_M_LC-14-13412-100-001.png", ParsedName(1, "14-13412", 100, subtype="LC")),
        ("SOB_M_PC-15-190EF-400-013.png", ParsedName(1, "15-190", 400, subtype="PC")),
        ("SOB_M_DC-13-2773-40-001.PNG", ParsedName(1, "13-2773", 40, subtype="DC")),
        # another year is another case
        ("SOB_M_DC-13-22549-40-001.png", ParsedName(1, "13-22549", 40, subtype="DC")),
        # the magnification is missing, the slide is not
        ("SOB_B_A-14-22549AB-007.png", ParsedName(0, "14-22549", follows_pattern=False)),
        ("SOB_M_DC-14-2773.png", ParsedName(1, "14-2773", follows_pattern=False)),
        # the slide is missing: 40 is a magnification, no case
        (
            "SOB_M_DC-14-40-001.png",
            ParsedName(1, "file:SOB_M_DC-14-40-001.png", follows_pattern=False),
        ),
        ("SOB_B_x.png", ParsedName(0, "file:SOB_B_x.png", follows_pattern=False)),
        (
            "SOB_M_DC-14-AB-40-001.png",
            ParsedName(1, "file:SOB_M_DC-14-AB-40-001.png", 40, "", False),
        ),
        # the folder counts only where the name tells nothing
        ("malignant/SOB_B_A-14-22549AB-40-001.png", ParsedName(0, "14-22549", 40, subtype="A")),
        ("400X/SOB_B_A-14-22549AB-40-001.png", ParsedName(0, "14-22549", 40, subtype="A")),
        ("malignant/scan 7.png", ParsedName(1, "file:malignant/scan 7.png", follows_pattern=False)),
        (
            "malignant/Benign/7.png",
            ParsedName(0, "file:malignant/Benign/7.png", follows_pattern=False),
        ),
    ],
)
def test_breakhis_names(name, expected):
    assert BreakHis.parse(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "train/PNEUMONIA/person12_bacteria_46.jpeg",
            ParsedName(1, "person12", 0, "train", subtype="bacteria"),
        ),
        (
            "train/PNEUMONIA/person12_virus_48.jpeg",
            ParsedName(1, "person12", 0, "train", subtype="virus"),
        ),
        (
            "test/PNEUMONIA/person1_bacteria_2_1.jpeg",
            ParsedName(1, "person1", 0, "test", subtype="bacteria"),
        ),
        ("val/NORMAL/NORMAL2-IM-1427-0001.jpeg", ParsedName(0, "NORMAL2-IM-1427", 0, "val")),
        ("IM-0043-0001.jpeg", ParsedName(0, "IM-0043")),
        ("IM-0043-0001-0002.jpeg", ParsedName(0, "IM-0043")),
        ("NORMAL2-IM-0043-0001-0002.jpeg", ParsedName(0, "NORMAL2-IM-0043")),
        ("x/IM-0043-0001.jpg", ParsedName(0, "IM-0043")),
        ("x/person7_virus_1.PNG", ParsedName(1, "person7", subtype="virus")),
        # the name wins over the folder
        ("PNEUMONIA/IM-0043-0001.jpeg", ParsedName(0, "IM-0043")),
        ("test/NORMAL/case 3.png", ParsedName(0, "file:test/NORMAL/case 3.png", 0, "test", False)),
        ("pneumonia/IM-43.jpeg", ParsedName(1, "file:pneumonia/IM-43.jpeg", follows_pattern=False)),
    ],
)
def test_chest_xray_names(name, expected):
    assert ChestXray.parse(name) == expected


def _save(folder: Path, name: str, level: int) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (16, 16), level).save(folder / name)


@pytest.mark.parametrize("name", ["breakhis", "chest_xray"])
def test_labels_by_subtype(tmp_path, name):
    subtypes = {
        "breakhis": ("A", "F", "PT", "TA", "DC", "LC", "MC", "PC"),
        "chest_xray": ("", "bacteria", "virus"),
    }[name]
    for i in range(40):
        subtype = subtypes[i % len(subtypes)]
        if name == "breakhis":
            letter = "B" if subtype in ("A", "F", "PT", "TA") else "m"
            file = f"SOB_{letter}_{subtype}-14-{100 + i}-40-001.png"
        else:
            file = f"person{i}_{subtype}_1.png" if subtype else f"IM-{i:04}-0001.png"
        _save(tmp_path / "set", file, 5 * i)
    config = get_config().data
    config.update({"name": name, "dir": str(tmp_path / "set"), "cache_dir": str(tmp_path)})
    config.update({"image_size": 8, "labels": "subtype"})
    dataset = load_dataset(config)
    assert dataset.class_names == list_dataset(config).class_names
    if name == "breakhis":
        assert dataset.class_names[::4] == ("adenosis", "ductal_carcinoma")
        assert dataset.class_names[3::4] == ("tubular_adenoma", "papillary_carcinoma")
    else:
        assert dataset.class_names == ("normal", "bacteria", "virus")
    for i, example in enumerate(dataset.examples):
        number = int(dataset.source[i][0, 0, 0]) // 5
        assert example.label == number % len(subtypes)
        assert example.subtype == subtypes[example.label]
    config.labels = "class"
    assert len(load_dataset(config).class_names) == 2


@pytest.mark.parametrize(
    ("name", "unknown"),
    [("breakhis", "SOB_M_XY-14-100-40-001.png"), ("breakhis", "malignant/scan.png"),
     ("chest_xray", "PNEUMONIA/scan.png"), ("chest_xray", "PNEUMONIA/person3_4.png")],
)  # fmt: skip
def test_an_unknown_subtype_is_rejected_with_a_reason(tmp_path, name, unknown):
    for i in range(120):
        stem = f"SOB_B_A-14-{100 + i}-40-001" if name == "breakhis" else f"person{i}_virus_1"
        _save(tmp_path / "set", f"{stem}.png", i)
    _save(tmp_path / "set", unknown, 99)
    config = get_config().data
    config.update({"name": name, "dir": str(tmp_path / "set"), "cache_dir": str(tmp_path)})
    config.update({"image_size": 8, "labels": "subtype"})
    assert load_dataset(config).report["rejected"] == [
        {"file": unknown, "reason": "the name tells none of the known subtypes"}
    ]


@pytest.mark.parametrize("builder", [BreakHis, ChestXray])
def test_a_file_without_any_label_is_refused(builder):
    with pytest.raises(UnlabelledError):
        builder.parse("train/photo.png")


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("SOB_M_DC-14-13412-100-001.png", True),
        ("any/SOB_M_DC-14-13412-40-010.png", True),
        ("SOB_M_DC-14-13412-010.png", True),
        ("SOB_M_LC-14-13412-100-001.png", False),
        ("SOB_M_DC-13-13412-100-001.png", False),
        ("SOB_M_DC-14-134120-100-001.png", False),
        ("SOB_M_DC-14-2773-100-001.png", False),
    ],
)
def test_the_slide_that_was_filed_twice_is_dropped_once(name, dropped):
    assert bool(BreakHis.drop_reason(name)) == dropped


# Cases that evaluation.md lists as lying in several slide folders.
PARTED = ["22549", "29960", "14134", "21998", "23060", "16184", "13412", "15570", "18842", "19979"]


@pytest.mark.parametrize("case", PARTED)
def test_parts_of_a_case_share_their_group(case):
    groups = {
        BreakHis.parse(f"SOB_B_A-14-{case}{part}-{magnification}-001.png").group
        for part in ("", "A", "AB", "CD", "G", "EF")
        for magnification in (40, 100, 200, 400)
    }
    assert groups == {f"14-{case}"}


def test_every_real_name_is_on_the_grammar(real_data_dir: Path):
    for builder, folder, names in (
        (BreakHis, "BreaKHis_v1", BreakHis.CLASS_NAMES),
        (ChestXray, "chest_xray", ChestXray.CLASS_NAMES),
        (ChestXray, "chest_xray_original", ChestXray.CLASS_NAMES),
    ):
        files = list_files(real_data_dir / folder, builder.SUFFIXES)
        assert files
        for file in files:
            parsed = builder.parse(file.path)
            assert parsed.follows_pattern
            assert names[parsed.label] in file.path.lower().split("/")  # these folders are right
            assert (f"/{parsed.magnification}X/" in file.path) == (builder is BreakHis)


def test_hidden_files_and_other_kinds_are_not_listed(tmp_path: Path):
    for name in (
        "a.jpeg",
        "b.JPG",
        "._a.jpeg",
        "__MACOSX/c.jpeg",
        ".git/d.png",
        "x/e.png",
        "f.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = [file.path for file in list_files(tmp_path, ChestXray.SUFFIXES)]
    assert listed == ["a.jpeg", "b.JPG", "x/e.png"]


def test_ids_are_names_and_paths_only_where_names_repeat():
    paths = ["train/a.png", "train/b.png", "test/a.png"]
    assert example_ids(paths) == ["train/a.png", "b", "test/a.png"]
