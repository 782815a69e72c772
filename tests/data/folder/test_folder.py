"""The user's own images: layouts, classes, patients, splits; one line for every wrong folder."""

import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless

from configs.default import get_config
from medadv_jax.config import Config
from medadv_jax.data.examples import Example
from medadv_jax.data.loader import list_dataset, load_dataset, make_loader
from medadv_jax.data.splits import SPLITS, make_splits
from medadv_jax.errors import UserError
from tools.dicom_files import PATIENT, dicom_file

FOUR = ("adipose", "lymph", "stroma", "tumour")


def save(path: Path, level: int = 0) -> None:
    """Writes noise of a brightness; other names have other noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(f"{path.parent.name}/{path.name}".encode())
    noise = np.random.default_rng(seed).integers(0, 90, (20, 24), np.uint8)
    Image.fromarray(noise + np.uint8(level)).save(path)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> Config:
    """`config.data` of the folder `set`, which does not exist yet."""
    monkeypatch.delenv("MEDADV_DATA_DIR", raising=False)
    config = get_config().data
    config.update({"name": "folder", "dir": str(tmp_path / "set"), "per_class": 0})
    config.update({"cache_dir": str(tmp_path / "cache"), "image_size": 8})
    return config


def fill(settings: Config, count: int = 15, classes: tuple[str, ...] = FOUR, top: str = "") -> Path:
    """Writes `count` images of five patients for each class."""
    folder = Path(settings.dir, top)
    for k, name in enumerate(classes):
        for i in range(count):
            save(folder / name / f"p{k}{i % 5}_{top}{i}.png", 40 * k)
    return Path(settings.dir)


def ids(dataset, part: list[int]) -> set[str]:
    return {dataset.examples[i].id for i in part}


def test_sixty_images_in_four_classes(settings):
    fill(settings)
    settings.group_pattern = r"^(p\d+)_"
    assert list_dataset(settings) == (60, FOUR, False)
    dataset = load_dataset(settings)
    assert dataset.class_names == FOUR
    assert Counter(dataset.labels.tolist()) == dict.fromkeys(range(4), 15)
    assert "4 classes: 0 = adipose (15 images), 1 = lymph" in dataset.report["notes"][0]
    assert dataset.report["patients_unknown"] == 0
    splits = make_splits(dataset.examples, settings, 0, dataset.class_names)
    groups = [{dataset.examples[i].group for i in getattr(splits, name)} for name in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20
    for name in SPLITS:
        assert {dataset.examples[i].label for i in getattr(splits, name)} == {0, 1, 2, 3}
    assert splits.to_json(dataset.examples)["classes"] == FOUR
    assert splits.done == "patient"
    batch = next(make_loader(dataset, splits.train, 32, shuffle_seed=0))
    means = batch["image"].mean((1, 2, 3))
    for k in range(4):  # labels stay with their images: class k has brightness 40 k + 45
        np.testing.assert_allclose(means[batch["label"] == k], 40 * k + 45, atol=12)


def test_without_patients_the_log_says_so(settings):
    fill(settings, 6, ("a", "b"))
    dataset = load_dataset(settings)
    assert dataset.report["notes"] == [
        "2 classes: 0 = a (6 images), 1 = b (6 images); b is the positive class",
        "patients unknown for 12 of 12 images",
    ]
    splits = make_splits(dataset.examples, settings, 0, dataset.class_names)
    assert splits.done == "image: patients unknown"
    assert "nothing protects against it; give config.data.group_pattern" in splits.notes[0]


@pytest.mark.parametrize(
    ("pattern", "group"),
    [
        (r"p(\d+)_", "12"),
        (r"^p\d+", "p12"),
        (r"(?:p)(\d)", "1"),
        (r"scan|(q\d)", "file:a/p12_scan7.png"),  # its first group is not in the name
    ],
)
def test_a_pattern_finds_the_patient(settings, pattern, group):
    fill(settings, 4, ("a", "b"))
    save(Path(settings.dir) / "a" / "p12_scan7.png", 9)
    save(Path(settings.dir) / "b" / "q1.png", 9)
    settings.group_pattern = pattern
    found = {example.id: example.group for example in load_dataset(settings).examples}
    assert found["p12_scan7"] == group


def test_folders_of_splits_are_the_official_ones(settings):
    for top, count in (("Training", 9), ("valid", 4), ("TEST", 5)):
        fill(settings, count, ("b", "a"), top)
    dataset = load_dataset(settings)
    assert dataset.class_names == ("a", "b")
    settings.split = "official"
    splits = make_splits(dataset.examples, settings, 0, dataset.class_names)
    for part, top, count in ((splits.train, "Training", 18), (splits.validation, "valid", 8),
                             (splits.test, "TEST", 10)):  # fmt: skip
        assert len(part) == count
        assert all(f"_{top}" in name for name in ids(dataset, part))
    settings.split = "patient"
    notes = make_splits(dataset.examples, settings, 0, dataset.class_names).notes
    assert "the data's own splits are not used; config.data.split=official does" in notes


def test_patients_in_two_official_splits_are_left_out_of_training(settings):
    for top, count in (("train", 9), ("val", 4), ("test", 3)):
        fill(settings, count, ("a", "b"), top)
    settings.group_pattern, settings.split = r"^p\d+", "official"
    dataset = load_dataset(settings)
    splits = make_splits(dataset.examples, settings, 0, dataset.class_names)
    # five patients a class: 0 to 2 in test, 3 is left for validation, 4 for training
    assert {name[:3] for name in ids(dataset, splits.test)} == {
        f"p{k}{i}" for k in (0, 1) for i in (0, 1, 2)
    }
    assert ids(dataset, splits.validation) == {"p03_val3", "p13_val3"}
    assert {name[:3] for name in ids(dataset, splits.train)} == {"p04", "p14"}
    assert any(note.startswith("4 training images of groups that also") for note in splits.notes)


def test_without_a_validation_folder_training_is_divided(settings):
    fill(settings, 10, ("a", "b"), "train")
    fill(settings, 3, ("a",), "test")
    settings.split = "official"
    dataset = load_dataset(settings)
    splits = make_splits(dataset.examples, settings, 0, dataset.class_names)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 4, 3)
    assert "no test image is of class b" in splits.notes


def test_the_order_of_the_classes(settings):
    fill(settings, 3, ("10", "9", "2"))
    assert load_dataset(settings).class_names == ("2", "9", "10")  # as numbers
    settings.classes = "10, 2,9"
    dataset = load_dataset(settings)
    assert dataset.class_names == ("10", "2", "9")
    assert {(e.label, e.source_split) for e in dataset.examples} == {(0, ""), (1, ""), (2, "")}
    by_name = {example.id: example.label for example in dataset.examples}
    assert [by_name[name] for name in ("p00_0", "p10_0", "p20_0")] == [0, 2, 1]


def test_equal_names_and_equal_bytes_in_two_classes_are_kept_apart(settings):
    for name in ("a", "b"):
        for i in range(4):
            save(Path(settings.dir) / name / f"{i}.png", 40 * (name == "b"))
    copy = (Path(settings.dir) / "a" / "3.png").read_bytes()
    (Path(settings.dir) / "b" / "3.png").write_bytes(copy)
    dataset = load_dataset(settings)
    assert len({example.id for example in dataset.examples}) == 8
    splits = make_splits(dataset.examples, settings, 0, dataset.class_names)
    assert splits.audit["contradictions"] == [["a/3.png", "b/3.png"]]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "bmp", "webp", "dcm"])
def test_every_format_is_read(settings, suffix):
    for k, name in enumerate(("dark", "light")):
        for i in range(3):
            pixels = np.full((16, 16), 60 + 120 * k, np.uint8)
            path = Path(settings.dir) / name / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == "dcm":
                path.write_bytes(dicom_file(pixels))
            else:
                Image.fromarray(pixels).save(path)
    dataset = load_dataset(settings)
    for i, example in enumerate(dataset.examples):
        np.testing.assert_allclose(dataset.source[i], 60 + 120 * example.label, atol=2)


@pytest.mark.parametrize(
    ("largest", "white"), [(200, 255), (255, 255), (256, 511), (3987, 4095), (60_000, 65535)]
)
@pytest.mark.parametrize("suffix", ["png", "tiff", "dcm"])
def test_pixels_of_16_bits_are_scaled_by_the_largest_of_all(settings, largest, white, suffix):
    for name in ("a", "b"):
        for i in range(3):
            path = Path(settings.dir) / name / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((16, 16), largest // (i + 1), np.uint16)
            if suffix == "dcm":
                path.write_bytes(dicom_file(pixels))
            else:
                Image.fromarray(pixels).save(path)
    dataset = load_dataset(settings)
    assert dataset.report["white"] == white
    assert dataset.report["notes"][-1] == (
        f"6 files have pixels of 16 bits, up to {largest}: {white} is white in all of them"
    )
    for i, example in enumerate(dataset.examples):
        value = largest // (int(Path(example.id).stem) + 1)
        np.testing.assert_allclose(dataset.source[i], 255 * value / white, atol=0.51)


def test_nothing_of_a_patient_is_copied_from_dicom(settings, tmp_path):
    for i in range(12):
        path = Path(settings.dir) / "ab"[i % 2] / f"{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        window: dict[str, Any] = {"WindowCenter": 900, "WindowWidth": 800} if i % 3 else {}
        kind = f"MONOCHROME{1 + i % 2}"
        pixels = np.random.default_rng(i).integers(0, 4096, (16, 16), np.uint16)
        path.write_bytes(
            dicom_file(pixels, BitsStored=12, PhotometricInterpretation=kind, **window)
        )
    dataset = load_dataset(settings)
    splits = make_splits(dataset.examples, settings, 0, dataset.class_names)
    assert [len(getattr(splits, name)) for name in SPLITS] == [8, 2, 2]
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            assert not any(text.encode() in path.read_bytes() for text in PATIENT)


def test_names_are_neither_markup_nor_commands(settings):
    names = ("$x_1$", "=cmd|' /C calc'!A0", "[red]bold[/red]", "<script>alert(1)</script>")
    for name in names:
        for i in range(3):
            save(Path(settings.dir) / name.replace("/", "∕") / f"{i}.png", 5)
    dataset = load_dataset(settings)
    assert {*dataset.class_names} == {name.replace("/", "∕") for name in names}


def test_control_characters_in_names_are_escaped(settings):
    fill(settings, 3, ("a", "b"))
    save(Path(settings.dir) / "\x1b[31mred" / "x\n1.png", 5)
    assert list_dataset(settings).class_names == ("\\x1b[31mred", "a", "b")
    assert "x\\n1" in {example.id for example in load_dataset(settings).examples}


def test_a_cache_is_of_one_order_of_classes_and_one_pattern(settings):
    fill(settings, 4, ("a", "b"))
    first = load_dataset(settings)
    settings.classes = "b,a"
    assert load_dataset(settings).labels.tolist() == (1 - first.labels).tolist()
    settings.group_pattern = r"^p\d+"
    assert load_dataset(settings).report["patients_unknown"] == 0


@pytest.mark.parametrize("place", [0, 3, 7])
def test_other_pixels_under_a_name_are_read_anew(settings, place):
    fill(settings, 4, ("a", "b"))
    before = load_dataset(settings)
    path = sorted(Path(settings.dir).rglob("*.png"))[place]
    save(path, 160)
    after = load_dataset(settings)
    changed = [i for i in range(8) if (before.source[i] != after.source[i]).any()]
    assert [before.examples[i].id for i in changed] == [path.stem]
    assert before.examples[changed[0]].md5 != after.examples[changed[0]].md5


# What is wrong, and part of its one line.


def _none(settings: Config) -> None:
    settings.dir += "/none"


def _no_folder(settings: Config) -> None:
    settings.dir = ""


def _empty(settings: Config) -> None:
    Path(settings.dir, "a").mkdir(parents=True)


def _one_class(settings: Config) -> None:
    fill(settings, 5, ("all",))


def _no_class(settings: Config) -> None:
    for i in range(5):
        save(Path(settings.dir) / f"{i}.png", i)


def _outside(settings: Config) -> None:
    save(fill(settings) / "stray.png")


def _kinds(settings: Config) -> None:
    fill(settings, 3, ("test", "healthy", "ill"))


def _files_in_a_split(settings: Config) -> None:
    fill(settings, 3, ("train", "test"))


def _alike(settings: Config) -> None:
    fill(settings, 3, ("Normal", "x"), "train")
    fill(settings, 3, ("NORMAL", "x"), "test")


def _long(settings: Config) -> None:
    fill(settings, 3, ("a" * 101, "b"))


def _few(settings: Config) -> None:
    fill(settings, 5, ("many",))
    fill(settings, 2, ("few",))


def _few_patients(settings: Config) -> None:
    fill(settings, 5, ("a", "b"))
    settings.group_pattern = r"p(\d)"


def _unlisted(settings: Config) -> None:
    fill(settings)
    settings.classes = "adipose,lymph,stroma"


def _unknown_class(settings: Config) -> None:
    fill(settings)
    settings.classes = ",".join((*FOUR, "glass"))


def _pattern(settings: Config) -> None:
    fill(settings)
    settings.group_pattern = "(p"


def _long_pattern(settings: Config) -> None:
    fill(settings)
    settings.group_pattern = "p" * 201


def _no_match(settings: Config) -> None:
    fill(settings)
    settings.group_pattern = "patient"


def _subtype(settings: Config) -> None:
    fill(settings)
    settings.labels = "subtype"


def _other_set(settings: Config) -> None:
    settings.name, settings.classes = "chest_xray", "a,b"


def _compressed(settings: Config) -> None:
    fill(settings, 6, ("a", "b"))
    data = encapsulate([bytes(8)])
    content = dicom_file(np.zeros((8, 8), np.uint16), JPEGLSLossless, PixelData=data)
    (Path(settings.dir) / "a" / "x.dcm").write_bytes(content)


def _frames(settings: Config) -> None:
    fill(settings, 6, ("a", "b"))
    content = dicom_file(np.zeros((8, 8), np.uint16), NumberOfFrames=4)
    (Path(settings.dir) / "a" / "x.dcm").write_bytes(content)


def _damaged(settings: Config) -> None:
    (fill(settings) / "lymph" / "p10_0.png").write_bytes(b"no image")


def _link(settings: Config) -> None:
    (fill(settings) / "lymph" / "gone.png").symlink_to("/nowhere/x.png")


def _no_official(settings: Config) -> None:
    fill(settings)
    settings.split = "official"


def _no_validation(settings: Config) -> None:
    for top, classes in (("train", ("a", "b")), ("val", ("a",)), ("test", ("a", "b"))):
        fill(settings, 4, classes, top)
    settings.split = "official"


def _load_and_split(settings: Config) -> None:
    dataset = load_dataset(settings)
    make_splits(dataset.examples, settings, 0, dataset.class_names)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (_none, "config.data.dir: no folder .*none; expected is FOLDER/<class>"),
        (_no_folder, "config.data.dir='': config.data.name=folder needs the folder"),
        (_empty, "config.data.dir: no image in .*set; expected is FOLDER/<class>"),
        (_one_class, r"one class \(all\), at least two are needed"),
        (_no_class, r"config.data.dir=.*: no class, at least two are needed"),
        (_outside, r"1 of 61 files .* stray.png \(in no folder of a class\)"),
        (_kinds, "test is a split, and healthy, ill is none"),
        (_files_in_a_split, "no class, at least two are needed"),
        (_alike, "'NORMAL' and 'Normal' look the same; rename one"),
        (_long, "class a{40}… has over 100 characters"),
        (_few, "2 images of class few, at least 3 are needed"),
        (_few_patients, "class a has 1 patients, at least 3 are needed"),
        (_unlisted, "config.data.classes=.*: tumour is not listed; .* has adipose, lymph"),
        (_unknown_class, "glass has no images"),
        (_pattern, r"config.data.group_pattern=\(p: no regular expression"),
        (_long_pattern, "over 200 characters"),
        (_no_match, "is in none of 60 file names, such as p00_0.png"),
        (_subtype, "folder has no subtypes; breakhis, chest_xray have"),
        (_other_set, "config.data.classes=a,b: only config.data.name=folder reads it"),
        (_compressed, r"a/x.dcm \(DICOM compressed as JPEG-LS .* no decoder is installed"),
        (_frames, r"a/x.dcm \(DICOM of 4 frames"),
        (_damaged, r"lymph/p10_0.png \(not an image"),
        (_link, r"lymph/gone.png \(cannot be read: No such file"),
        (_no_official, "config.data.split=official: 0 test and 0 training images in folder"),
        (_no_validation, "class b has no validation image"),
    ],
)
def test_a_wrong_folder_is_one_line(settings, wrong: Callable[[Config], None], line):
    wrong(settings)
    with pytest.raises(UserError) as caught:
        _load_and_split(settings)
    message = str(caught.value)
    assert re.search(line, message), message
    assert message.isprintable()


def test_every_class_is_in_every_split_if_it_has_three_patients():
    """Tiny data of two to eight classes; up to half of a patient's images are of other classes."""
    config: Any = get_config().data
    config.update({"name": "folder", "per_class": 0})
    for seed in range(25):
        rng = np.random.default_rng(seed)
        count, mixed = int(rng.integers(2, 9)), rng.random() / 2
        examples = []
        for k in range(count):
            for group in range(rng.integers(3, 7)):
                labels = [k, *np.where(rng.random(4) < mixed, rng.integers(count, size=4), k)]
                examples += [
                    Example(f"{k}-{group}-{i}", int(label), f"{k}-{group}", 0, "", f"{k}{group}{i}")
                    for i, label in enumerate(labels[: rng.integers(1, 6)])
                ]
        names = tuple(f"class {k}" for k in range(count))
        splits = make_splits(examples, config, seed, names)
        for name in SPLITS:
            assert {examples[i].label for i in getattr(splits, name)} == {*range(count)}
