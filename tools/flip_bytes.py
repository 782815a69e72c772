"""Flips single bytes in the files of a small run, and reads them as later stages do.

    python -m tools.flip_bytes --folder=runs/flips        # trains the run first: a minute

Of the records and of a model folder's description every byte is flipped in turn, of the files of a
checkpoint, of an image cache and of a model folder's weights every 50th: one random bit of it. For
each file the table says how often the result was the same
(parameters, images, results, report tables), how often the reader raised one clear line, a
`UserError`, and how often the result was silently another or the error was not clear. Exit code 1
if there is any of the last two.

A network of two convolutions replaces the named ones, since the files are what is tested.
"""

import argparse
import collections
import hashlib
import pickle
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from medadv_jax import models
from medadv_jax.config import Config, read_saved_config
from medadv_jax.data.loader import load_dataset
from medadv_jax.data.splits import saved_class_names
from medadv_jax.defenses import get_defense
from medadv_jax.deployment.model_folder import DESCRIPTION, WEIGHTS, read_model_folder
from medadv_jax.errors import UserError
from medadv_jax.experiment import run_dir
from medadv_jax.files import read_json
from medadv_jax.report import run_page
from medadv_jax.report.read_runs import load_run
from medadv_jax.report.tables import as_csv
from medadv_jax.training.classifiers import Classifiers
from tools.soak import Process, TinyNet

RECORDS = (
    "predictions.parquet", "config.json", "splits.json", "self_checks.json", "curves.parquet",
    "detection.parquet", "pictures.npz", "metrics.jsonl", "networks.json", "thresholds.json",
    "attack_record.json", "digests.json",
)  # fmt: skip
OVERRIDES = {
    "data.phantom_images": 60, "eval.images": 8, "eval.check_images": 4,
    "eval.attacks": "fgsm,apgd", "eval.apgd_steps": 4, "eval.second_queries": 5,
    "eval.threshold": "youden", "train.epochs": 1, "purifier.epochs": 1, "purifier.width": 0.125,
    "defenses": "base,autoencoder",
}  # fmt: skip
OUTCOMES = ("same result", "clear line", "unclear error", "silent")


def main() -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the run and its cache")
    parser.add_argument("--every", type=int, default=50, help="byte of checkpoints and images")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    models.MODELS.update(dict.fromkeys(models.MODELS, TinyNet))
    given.folder.mkdir(parents=True, exist_ok=True)
    end = Process(given.folder, "run", OVERRIDES).finish()
    if end.code:
        print(f"the run fails with {end.code}: {end.errors}")
        return 1
    return flip_all(given.folder / "run", given.folder / "cache-run", given.every)


def flip_all(run: Path, cache: Path, every: int) -> int:
    """Prints a line for each file, and the sums; returns 1 if a flip is silent or unclear."""
    print(f"{'file':44} {'flips':>6} " + " ".join(f"{name:>13}" for name in OUTCOMES))
    total: collections.Counter[str] = collections.Counter()
    groups: list[tuple[Path, int, Callable[[], Any]]] = [
        (run / name, 1, lambda: records(run)) for name in RECORDS
    ]
    groups += [
        (path, every, lambda: parameters(run)) for path in _files(run / "checkpoints" / "base")
    ]
    groups += [(path, every, lambda: images(run)) for path in _files(cache)]
    folder = run / "models" / "autoencoder"  # a network with a purifier
    groups += [
        (folder / name, step, lambda: model(folder))
        for name, step in ((DESCRIPTION, 1), (WEIGHTS, every))
    ]
    for path, step, read in groups:
        found = flip(path, step, read)
        total += found
        name = str(path.relative_to(run.parent))[-44:]
        print(_line(name, found), flush=True)
    print(_line("all", total))
    return int(bool(total["silent"] or total["unclear error"]))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _line(name: str, found: collections.Counter[str]) -> str:
    return f"{name:44} {found.total():6} " + " ".join(f"{found[o]:13}" for o in OUTCOMES)


def flip(path: Path, step: int, read: Callable[[], Any], seed: int = 0) -> collections.Counter[str]:
    """Returns how often each of `OUTCOMES` came of flipping a random bit of every `step`-th byte.

    Args:
      path: the file; at the end it is as it was.
      step: 1 flips every byte, one at a time.
      read: reads the file and returns what depends on it.
      seed: of the bits.
    """
    content, expected, rng = path.read_bytes(), fingerprint(read()), random.Random(seed)
    found: collections.Counter[str] = collections.Counter()
    try:
        for position in range(0, len(content), step):
            damaged = bytearray(content)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            found[_outcome(read, expected)] += 1
    finally:
        path.write_bytes(content)
    return found


def _outcome(read: Callable[[], Any], expected: str) -> str:
    try:
        return "same result" if fingerprint(read()) == expected else "silent"
    except UserError:
        return "clear line"
    except Exception:  # whatever it is, a user cannot read it
        return "unclear error"


def fingerprint(result: Any) -> str:
    """Returns a digest of nested dicts, lists and arrays."""
    return hashlib.sha256(pickle.dumps(result)).hexdigest()


def records(run: Path) -> Any:
    """Returns what the same command and the report derive from the records of a run."""
    config = ConfigDict(read_saved_config(run / "config.json")["config"])
    run_dir.claim(run, config)
    found = load_run(run)
    page = run_page.build(found)
    return page.title, page.lead, [as_csv(table) for table in page.tables], _bytes(found.pictures)


def parameters(run: Path) -> Any:
    """Returns the variables of the base network."""
    config: Config = ConfigDict(read_saved_config(run / "config.json")["config"])
    classes = saved_class_names(read_json(run / "splits.json"), config.data.name)
    return _bytes(Classifiers(config, run, classes).variables(get_defense("base")))


def images(run: Path) -> Any:
    """Returns the images of the cache and what is known of them."""
    config = ConfigDict(read_saved_config(run / "config.json")["config"])
    dataset = load_dataset(config.data)
    pixels = [dataset.source[i] for i in range(len(dataset.examples))]
    return dataset.examples, dataset.report, _bytes(pixels)


def model(folder: Path) -> Any:
    """Returns what a model folder holds."""
    description, variables = read_model_folder(folder)
    return description.to_json(), _bytes(variables)


def _bytes(tree: Any) -> Any:
    """Returns a tree's arrays as (dtype, shape, bytes)."""

    def plain(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
        array = np.asarray(leaf)
        return str(array.dtype), array.shape, array.tobytes()

    return jax.tree.map(plain, tree)


if __name__ == "__main__":
    sys.exit(main())
