"""Files to rows: every format, every fault one row or one line, and what is written beside."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medadv_jax import cli
from medadv_jax.deployment.attack_images import attack_images, read_labels, round_in_ball
from medadv_jax.deployment.predict_files import Options, find_files, predict_files
from medadv_jax.errors import UserError
from tests.helpers.tiny import make_model

ROOT = Path(__file__).parents[2]
CLASSES = ("cat", "dog", "a,b")


@pytest.fixture(scope="module")
def model():
    return make_model(CLASSES, purified=True, detectors={"squeezing": 0.1})


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.bmp", "c.tiff", "deep/d.webp", "deep/e.jpeg")):
        pixels = rng.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def predict(model, paths, tmp_path, **options):
    output = tmp_path / "out.csv"
    files = find_files(paths)
    bad = predict_files(model, files, Options(**options), output)
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(path) for path in files]
    return bad, rows


def test_rows_hold_what_the_model_says(model, images, tmp_path, capsys):
    """In any batch size; commas in class names are quoted; nothing on standard output."""
    files = find_files([images])
    assert len(files) == 5
    expected = model.predict(np.stack([model.read(path) for path in files]))
    for batch_size in (1, 3, 32):
        bad, rows = predict(model, [images], tmp_path, batch_size=batch_size)
        assert bad == 0
        for i, row in enumerate(rows):
            found = [float(row[f"probability_{name}"]) for name in CLASSES]
            np.testing.assert_allclose(found, expected.probability[i], atol=1e-6)
            assert row["predicted"] == CLASSES[expected.label[i]]
            assert {"score_reconstruction", "flagged_squeezing"} <= row.keys()
            assert not {"flagged_reconstruction", "abstained"} & row.keys()
    assert capsys.readouterr().out == ""


def test_standard_output_gets_the_same(model, images, tmp_path, capsys):
    predict_files(model, find_files([images]), Options(), tmp_path / "out.csv")
    predict_files(model, find_files([images]), Options())
    assert capsys.readouterr().out == (tmp_path / "out.csv").read_text()


def test_folders_patterns_and_repeats(images):
    every = find_files([images])
    assert find_files([images / "**/*.*", images, images / "a.png"]) == sorted(every) == every
    assert [path.name for path in find_files([images / "*.png"])] == ["a.png"]
    odd = images / "[x].png"
    odd.write_bytes((images / "a.png").read_bytes())
    assert find_files([odd]) == [odd]


def png_bytes(pixels: np.ndarray, path: Path) -> bytes:
    Image.fromarray(pixels).save(path, "PNG")
    return path.read_bytes()


BAD_FILES = {
    "empty": (b"", "empty file"),
    "text": (b"hello", "not an image"),
    "pickle": (b"\x80\x04\x95\x00.", "not an image"),
    "truncated": (None, "damaged"),
    "link to nothing": ("link", "cannot be read: No such file"),
    "pipe": ("pipe", "not a regular file"),
    "floating": ("float", "floating-point pixels"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_a_row_and_the_others_are_done(name, model, images, tmp_path):
    content, reason = BAD_FILES[name]
    path = images / "b2.png"
    if content == "link":
        path.symlink_to("nothing")
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "float":
        Image.fromarray(np.ones((9, 9), np.float32)).save(path, "TIFF")
    else:
        whole = (images / "a.png").read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    bad, rows = predict(model, [images], tmp_path, abstain_below=0.5)
    assert bad == 1
    (row,) = [row for row in rows if row["error"]]
    assert row["file"] == str(path)
    assert reason in row["error"]
    assert row["predicted"] == row["abstained"] == ""
    assert all(row["predicted"] for row in rows if not row["error"])


def test_sixteen_bits_and_one_bit_are_images(model, tmp_path):
    """16-bit values are scaled, not clipped: the picture is that of its upper 8 bits."""
    deep = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray((deep // 257).astype(np.uint8)).save(tmp_path / "flat.png")
    found = [model.read(tmp_path / name) for name in ("deep.png", "flat.png")]
    np.testing.assert_allclose(found[0].astype(int), found[1].astype(int), atol=1)


def test_abstaining_marks_what_is_below(model, images, tmp_path):
    _, rows = predict(model, [images], tmp_path)
    best = [max(float(row[f"probability_{name}"]) for name in CLASSES) for row in rows]
    limit = float(np.median(best)) + 1e-6
    _, rows = predict(model, [images], tmp_path, abstain_below=limit)
    assert [row["abstained"] for row in rows] == [str(int(p < limit)) for p in best]


def test_saliency_writes_two_pictures_an_image(model, images, tmp_path):
    predict(model, [images / "*.png"], tmp_path, saliency=tmp_path / "maps")
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["00000_a_grad_cam.png", "00000_a_integrated_gradients.png"]
    with Image.open(tmp_path / "maps" / names[1]) as image:
        pixels = np.asarray(image).astype(int)
    assert (pixels[..., 0] >= pixels[..., 1]).all()  # grey and red
    assert (pixels[..., 0] > pixels[..., 1]).any()


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_attacked_images_are_predicted_as_they_are_written(attack, model, images, tmp_path):
    """8-bit PNG within ε of what the model read, and the CSV says what the model says of them."""
    epsilon, folder = 0.05, tmp_path / "attacked"
    bad, rows = predict(
        model, [images], tmp_path, attack=attack, epsilon=epsilon, attacked=folder, labels="cat"
    )
    assert bad == 0
    lower = 0
    for row in rows:
        with Image.open(row["attacked_file"]) as image:
            found = np.asarray(image)
        read = model.read(row["file"])
        assert abs(found.astype(int) - read).max() <= int(255 * epsilon)
        said = model.predict(found[None])
        assert row["attacked_predicted"] == CLASSES[said.label[0]]
        p = float(row["attacked_probability_cat"])
        np.testing.assert_allclose(p, said.probability[0, 0], atol=1e-6)
        assert p <= float(row["probability_cat"])
        lower += p < float(row["probability_cat"])
        assert row["attacked_label"] == "cat"
    # APGD leaves images alone that are misclassified already.
    assert lower >= sum(row["predicted"] == "cat" for row in rows) > 0


def test_without_labels_the_prediction_is_attacked(model, images, tmp_path):
    (images / "broken.png").write_bytes(b"no")
    bad, rows = predict(model, [images], tmp_path, attack="fgsm", attacked=tmp_path / "attacked")
    assert bad == 1
    assert all(row["attacked_label"] == row["predicted"] for row in rows)


def test_rounding_stays_in_the_ball():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for epsilon in (0.0, 1 / 255, 0.03, 8 / 255, 1.0):
        noise = rng.uniform(-epsilon, epsilon, images.shape)
        pixels = np.clip(images / 255 + noise, 0, 1).astype(np.float32)
        found = round_in_ball(pixels, images, epsilon)
        assert abs(found.astype(int) - images).max() <= 255 * epsilon + 1e-6
        most = int(255 * epsilon + 1e-6)
        expected = np.clip(np.rint(255 * pixels), images.astype(int) - most, images + float(most))
        np.testing.assert_array_equal(found, expected)


def test_no_attack_makes_the_label_more_probable():
    """The image itself is among the attempts."""
    model = make_model("ab")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0])
    found, said = attack_images(model, images, labels, "pgd", 0.0)
    np.testing.assert_array_equal(found, images)
    clean = model.predict(images).probability
    np.testing.assert_allclose(said.probability, clean, atol=1e-6)


def test_labels_of_a_file(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text('file,label\nx/1.png,dog\n2.png,2\n3.png,"a,b"\n')
    assert read_labels(str(table), CLASSES) == {"x/1.png": 1, "2.png": 2, "3.png": 2}
    assert read_labels("dog", CLASSES) == read_labels("1", CLASSES) == 1
    assert read_labels("", CLASSES) is None


BAD_LABELS = {
    "nowhere.csv": None, "a folder": "", "no column": "name,label\na,cat\n",
    "unknown class": "file,label\na.png,bird\n", "no label of a file": "file,label\nz.png,cat\n",
    "binary": b"\xff\xfe\x00file",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_are_one_line(name, model, images, tmp_path):
    path = tmp_path / "labels.csv"
    content = BAD_LABELS[name]
    if content == "":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="--labels") as caught:
        predict(model, [images], tmp_path, attack="fgsm", labels=str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


BAD_OPTIONS = {
    "abstain below 2": ({"abstain_below": 2.0}, "--abstain-below=2: give a probability"),
    "abstain below nan": ({"abstain_below": float("nan")}, "--abstain-below=nan"),
    "unknown attack": ({"attack": "magic"}, "unknown attack 'magic'"),
    "radius in 255ths": ({"attack": "pgd", "epsilon": 8.0}, "take 8/255"),
    "negative radius": ({"attack": "pgd", "epsilon": -1.0}, "--attack=pgd --epsilon=-1"),
    "saliency into a file": ({"saliency": Path(__file__)}, "--saliency="),
    "attacked into a file": ({"attack": "pgd", "attacked": Path(__file__) / "x"}, "--attacked="),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_one_line_and_exit_2(name, model, images, tmp_path, capsys):
    options, message = BAD_OPTIONS[name]
    code = cli.guard(lambda: predict(model, [images], tmp_path, **options) and None)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("where", ["nowhere", "empty", "nothing*.png"])
def test_no_file_is_one_line(where, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file there"):
        find_files([tmp_path / where])
    with pytest.raises(UserError, match="no image"):
        find_files([])


def test_an_output_that_cannot_be_written(model, images, tmp_path):
    for output in (images / "a.png" / "out.csv", images):
        with pytest.raises(UserError, match="--output="):
            predict_files(model, find_files([images]), Options(), output)


def test_the_command_line(images, tmp_path):
    """A model that is none: one line, exit code 2."""
    command = [sys.executable, str(ROOT / "scripts/predict.py"), "--model=nowhere", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere: neither a run directory nor a model folder" in done.stderr
