"""Whatever a user or a stranger hands in: one line, an exit code, and what was finished stays."""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from medadv_jax.experiment import run_dir
from medadv_jax.files import write_json
from tests.helpers import bad_input_child

ROOT = Path(__file__).parents[1]
CONFIG = """
from tests.helpers.tiny import tiny_config
def get_config():
    config = tiny_config()
    config.defenses = "base"
    config.train.epochs = 1
    config.train.attacks = config.eval.attacks = "fgsm"
    return config
"""


class Place(NamedTuple):
    """Where a case happens.

    Attributes:
      folder: empty.
      run: a copy of a finished run.
      cache: of the images, also a copy.
    """

    folder: Path
    run: Path
    cache: Path


Case = tuple[str, Callable[[Place], Any], str]  # name, what is done before, part of the message
CASES: list[Case] = []


def case(message: str, name: str = "") -> Callable:
    """Adds a function to the table; it returns arguments for main.py."""

    def add(function: Callable[[Place], Any]) -> Callable[[Place], Any]:
        CASES.append((name or function.__name__, function, message))
        return function

    return add


def flags(*given: str, message: str) -> None:
    """Adds a case of arguments alone."""
    CASES.append(
        (" ".join(given), lambda place: [*given, f"--workdir={place.folder}/new"], message)
    )


# Configs

flags("--config=", message="--config=: cannot be read")
flags("--config=nowhere.py", message="--config=nowhere.py: cannot be read")
flags("--config=README.md", message="--config=README.md: cannot be read")
flags("--config=medadv_jax/errors.py", message="cannot be read; it must be the path of a file like")
flags("--config={config}", "stray", message="stray: not a flag")
for override, part in {
    "train.epoch=3": "did you mean config.train.epochs?",
    "train.epochs=many": "must be an integer",
    "train.epochs=0": "must be at least 1",
    "train.epochs=1.5": "must be an integer",
    "eval.checks=maybe": "must be true or false",
    "seed=99999999999": "must be at least 0 and at most 2.14748e+09",
    "attack.epsilon=-1": "must be at least 0",
    "attack.epsilon=nan": "must be at least 0",
    "attack.epsilon=inf": "must be at least 0",
    "attack.norm=l7": "must be one of l2, linf",
    "train.attacks=pgd,pgd": "each once",
    "train.learning_rate=0": "must be above 0",
    "train.batch_size=13": "config.train.batch_size=13: must be a multiple of",
    "train.batch_size=1024": "must be at most the 80 images there are",
    "train.checkpoint_minutes=-1": "must be at least 0",
    "data.image_size=100000": "must be at least 32 and at most 1024",
    "data.image_size=8": "must be at least 32",
    "data.name=imagenet": "must be one of breakhis, chest_xray, chest_xray14, folder, phantoms",
    "data.cache_dir=": "must be a folder",
    "data.labels=subtype": "phantoms has no subtypes; breakhis, chest_xray have",
    "data.classes=a": "must be two or more names",
    "data.classes=a,b": "only config.data.name=folder reads it",
    "data.group_pattern=(": "must be a regular expression",
    "data.csv=x.csv": "only config.data.name=folder reads it",
    "data.name=folder": "config.data.name=folder needs the folder of the images",
    "data.num_folds=1": "must be 0, or from 2 to 100",
    "model.name=resnet51": "must be one of",
    "model.dropout=0.5": "has no dropout",
    "defenses=hybrid": "stands before hybrid",
    "defenses=none": "must be names out of",
    "reuse=nowhere": "config.reuse=nowhere: holds no run",
    "model.weights=torchvision/resnet99": "torchvision/resnet99: No such file",
    "model.weights=nowhere.pth": "nowhere.pth: No such file",
}.items():
    flags("--config={config}", f"--config.{override}", message=part)
for folder, part in {
    "nowhere": "config.data.dir: no folder nowhere",
    "README.md": "config.data.dir: no folder README.md",
    "configs": "no image in configs",
}.items():
    given = ("--config.data.name=chest_xray", f"--config.data.dir={folder}")
    flags("--config={config}", *given, message=part)


# Images


def chest(place: Place, content: bytes | None) -> list[str]:
    """A folder of X-rays, one of them with this content, None: a link to nothing."""
    for i in range(40):
        kind, name = ("NORMAL", f"IM-{i:04}-0001") if i % 2 else ("PNEUMONIA", f"person{i}_virus_1")
        path = place.folder / "chest_xray" / "train" / kind / f"{name}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i:
            Image.new("L", (40, 40), i).save(path)
        elif content is None:
            path.symlink_to("nothing")
        else:
            path.write_bytes(content)
    given = ["--config={config}", "--config.data.name=chest_xray", "--config.data.dir={folder}"]
    return [*given, "--config.data.cache_dir={folder}/cache", "--workdir={folder}/new"]


def png(width: int = 8, height: int = 8) -> bytes:
    """A small file whose header claims a size."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "png")
    content = buffer.getvalue()
    header = content[12:16] + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


for what, data, part in (
    ("empty image", b"", "(empty file)"),
    ("image cut short", png()[:45], "(damaged"),
    ("bomb", png(60_000, 60_000), "(over 40 megapixels"),
    ("absurd width", png(2**31 - 1, 1), "(over 40 megapixels"),
    ("text as image", b"hello", "(not an image"),
    ("PostScript as image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "(not an image"),
    ("link to nothing", None, "(cannot be read: No such file"),
):
    CASES.append((what, lambda place, data=data: chest(place, data), part))


@case("is damaged", "cache cut short")
def _(place):
    next(place.cache.rglob("*array_record-0*")).write_bytes(b"short")
    (place.run / "predictions.parquet").unlink()  # or no image would be read
    return []


@case("damaged", "cache whose index is no JSON")
def _(place):
    next(place.cache.rglob("index.json")).write_text("{")
    return []


# Weights


def weights(content: bytes) -> Callable[[Place], list[str]]:
    """A file of weights with this content."""

    def write(place: Place) -> list[str]:
        (place.folder / "w.pth").write_bytes(content)
        given = ["--config={config}", "--config.model.weights={folder}/w.pth"]
        return [*given, "--workdir={folder}/new"]

    return write


ATTACK = b"\x80\x02cposix\nsystem\nX\x05\x00\x00\x00touch\x85R."
OTHER = json.dumps(
    {
        "__metadata__": {"format": "medadv_jax", "arch": "vgg16"},
        "a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]},
    }
).encode()
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
CASES += [
    ("pickle that calls", weights(ATTACK), "it holds posix.system"),
    ("empty weights", weights(b""), "the file is empty"),
    ("picture as weights", weights(png()), "not a file of weights"),
    ("weights cut short", weights(len(HEADER).to_bytes(8, "little") + HEADER), "cut short"),
    (
        "weights of another network",
        weights(len(OTHER).to_bytes(8, "little") + OTHER + bytes(36)),
        "converted weights of vgg16, not of resnet50",
    ),
    ("archive as weights", weights(b"PK\x03\x04" + bytes(100)), "damaged, or no file of weights"),
    ("HDF5 in name only", weights(b"\x89HDF\r\n\x1a\n" + bytes(100)), "no file of weights"),
]


# Workdirs: the finished run, with something done to it


def damaged(name: str, content: bytes) -> Callable[[Place], list[str]]:
    """Overwrites a file of the run."""

    def write(place: Place) -> list[str]:
        (place.run / name).write_bytes(content)
        return []

    return write


CASES += [
    ("config.json cut short", damaged("config.json", b'{"config": {'), "config.json: damaged"),
    ("config.json a list", damaged("config.json", b"[]"), "config.json: damaged"),
    ("config.json empty", damaged("config.json", b""), "config.json: damaged"),
    ("config.json nested", damaged("config.json", b"[" * 10**5), "config.json: damaged"),
    ("splits.json damaged", damaged("splits.json", b"{}"), "splits.json: damaged"),
    ("predictions damaged", damaged("predictions.parquet", b"PAR1"), "parquet: damaged"),
    ("curves damaged", damaged("curves.parquet", b"PAR1PAR1"), "curves.parquet: damaged"),
    ("detection damaged", damaged("detection.parquet", b""), "detection.parquet: damaged"),
    ("checks damaged", damaged("self_checks.json", b'{"checks": 1}'), "self_checks.json: damaged"),
    ("pictures damaged", damaged("pictures.npz", b"PK"), "pictures.npz: damaged"),
    ("another config", lambda place: ["--config.seed=3"], "config.seed=3 (there: 0)"),
]


@case("began with other images")
def other_images(place):
    path = place.run / "splits.json"
    splits = json.loads(path.read_text())
    splits["test"] = splits["test"][1:]
    write_json(path, splits)


@case("is a file: give another path", "workdir is a file")
def _(place):
    (place.folder / "file").write_text("")
    return ["--workdir={folder}/file"]


@case("a part of the path is a file", "workdir below a file")
def _(place):
    (place.folder / "file").write_text("")
    return ["--workdir={folder}/file/run"]


def checkpoint(place: Place) -> Path:
    """The only checkpoint of the run, which is evaluated anew."""
    (place.run / "predictions.parquet").unlink()
    return place.run / "checkpoints" / "base" / "1"


@case("base/1: damaged, or of another network")
def checkpoint_without_arrays(place):
    shutil.rmtree(checkpoint(place) / "default")


@case("base/1: damaged, or of another network")
def checkpoint_cut_short(place):
    for path in (checkpoint(place) / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@case("checkpoints/base: damaged, or of another network")
def checkpoint_metrics_damaged(place):
    (checkpoint(place) / "metrics" / "metrics").write_text("no numbers")


def changed(place: Place, change: Callable[[Any], Any]) -> None:
    """Writes the checkpoint anew, its parameters changed."""
    folder = checkpoint(place) / "default"
    warnings.filterwarnings("ignore", message="Sharding info")
    state = ocp.PyTreeCheckpointer().restore(folder)
    state = {**state, "params": change(state["params"])}
    shutil.rmtree(folder)
    ocp.PyTreeCheckpointer().save(folder, state)


@case("params/Dense_0/bias holds NaN")
def checkpoint_with_nan(place):
    def poison(params):
        layers = params["params"]
        layers["Dense_0"]["bias"] = np.full_like(layers["Dense_0"]["bias"], np.nan)
        return params

    changed(place, poison)


@case("base/1: damaged, or of another network")
def checkpoint_of_other_shapes(place):
    def widen(params):
        layers = params["params"]
        layers["Dense_0"]["kernel"] = np.zeros((9, 2), np.float32)
        return params

    changed(place, widen)


@case("base/1: damaged, or of another network")
def checkpoint_of_another_network(place):
    changed(place, lambda params: {"params": {"fc": {"kernel": np.zeros((3, 3), np.float32)}}})


@case("config.json: damaged", "reuse of a damaged run")
def _(place):
    (place.run / "config.json").write_text("]")
    return ["--config.reuse={run}", "--workdir={folder}/new"]


@case("no stage would be the same", "reuse of a run of other training")
def _(place):
    del place
    return ["--config.reuse={run}", "--config.seed=3", "--workdir={folder}/new"]


# What fails while it runs

FRESH = "--workdir={folder}/new"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Runs main.py in a fork of a process that has imported everything."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.bad_input_start"])
    folder = tmp_path_factory.mktemp("output")

    def run(arguments, before=None):
        output = str(folder / "o")
        process = context.Process(target=bad_input_child.run_main, args=(arguments, output, before))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
        return process.exitcode, *(Path(f"{output}.{s}").read_text() for s in ("out", "err"))

    yield run
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """A finished run, its images and its config file."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "config.py").write_text(CONFIG)
    arguments = [f"--config={folder}/config.py", f"--config.data.cache_dir={folder}/cache"]
    code, _, errors = start([*arguments, f"--workdir={folder}/run"])
    assert code == 0, errors
    return folder


@pytest.fixture
def place(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copytree(finished / "cache", tmp_path / "cache")
    (tmp_path / "new").mkdir()
    return Place(tmp_path / "new", tmp_path / "run", tmp_path / "cache")


def arguments_of(given, place, finished):
    """Fills in places; the finished run's command is the default for what is not given."""
    names = {"config": finished / "config.py", "folder": place.folder, "run": place.run}
    filled = [text.format(**names) for text in given or []]
    defaults = {
        "--config=": f"--config={names['config']}",
        "--workdir=": f"--workdir={place.run}",
        "--config.data.cache_dir=": f"--config.data.cache_dir={place.cache}",
    }
    missing = [v for k, v in defaults.items() if not any(f.startswith(k) for f in filled)]
    return sorted([*missing, *filled], key=lambda flag: not flag.startswith("--config="))


def in_one_line(code, errors, message):
    assert code == 2, errors
    lines = errors.splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("error: ")
    assert len(lines) == 1, errors[:2000]


def content(run):
    """Digests of what a finished run has left; its lock and TensorBoard's events aside."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).digest()
        for path in run.rglob("*")
        if path.is_file() and path.name != ".lock" and "tensorboard" not in path.parts
    }


def test_the_table_is_long_enough():
    assert len(CASES) >= 40


@pytest.mark.parametrize(("name", "prepare", "message"), CASES, ids=[name for name, *_ in CASES])
def test_bad_input_is_answered_in_one_line(name, prepare, message, start, place, finished):
    del name
    arguments = arguments_of(prepare(place), place, finished)
    before = content(place.run)
    code, _, errors = start(arguments)
    in_one_line(code, errors, message)
    after = content(place.run)
    kept = ("results.csv", "predictions.parquet", "config.json", "checkpoints/")
    assert {k: v for k, v in before.items() if k.startswith(kept)} == {
        k: v for k, v in after.items() if k.startswith(kept)
    }


def test_debug_shows_where_it_arose(start, place, finished):
    (place.run / "config.json").write_text("{")
    code, _, errors = start([*arguments_of([], place, finished), "--debug"])
    assert code == 2
    assert "Traceback" in errors


def test_a_loss_that_is_not_finite(start, place, finished):
    given = arguments_of([FRESH, "--config.train.learning_rate=1e38"], place, finished)
    code, _, errors = start(given)
    in_one_line(code, errors, "must be above 0 and at most 1e+06")
    code, _, errors = start(given, bad_input_child.allow_any_rate)
    in_one_line(code, errors, "is not finite at step")


def test_memory_that_does_not_suffice_names_the_sizes(start, place, finished):
    given = [FRESH, "--config.eval.batch_size=10000000"]
    code, _, errors = start(arguments_of(given, place, finished), bad_input_child.limit_memory)
    in_one_line(code, errors, "out of memory")
    assert "eval.batch_size=10000000 images of 32 × 32" in errors
    assert "--config.eval.batch_size=5000000" in errors


def test_a_file_that_may_not_grow(start, place, finished):
    given = arguments_of([FRESH], place, finished)
    code, _, errors = start(given, bad_input_child.limit_files)
    in_one_line(code, errors, "the file may not grow")


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int, options: str = "") -> Iterator[None]:
    """A file system of that size on `folder`; skips where nobody may mount one."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k{options}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights that this user lacks")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [8, 40, 200])
def test_a_full_disk_and_then_room(start, place, finished, kilobytes):
    """The room ends in another stage each time; with room the same command goes on."""
    disk = place.folder / "disk"
    with small_disk(disk, kilobytes):
        given = arguments_of([f"--workdir={disk}/run"], place, finished)
        code, _, errors = start(given)
        in_one_line(code, errors, "make room")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        code, _, errors = start(given)
        assert code == 0, errors
        results = [path / "results.csv" for path in (disk / "run", place.run)]
        assert results[0].read_text() == results[1].read_text()


def test_a_read_only_disk(start, place, finished):
    disk = place.folder / "disk"
    with small_disk(disk, 8, ",ro"):
        given = arguments_of([f"--workdir={disk}/run"], place, finished)
        code, _, errors = start(given)
        in_one_line(code, errors, "a read-only file system: give another --workdir")


def test_a_second_process_in_a_workdir(start, place, finished):
    with run_dir.locked(place.run):
        code, _, errors = start(arguments_of([], place, finished))
    in_one_line(code, errors, f"process {os.getpid()} on ")
