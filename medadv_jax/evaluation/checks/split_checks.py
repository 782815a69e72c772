"""Self-check 11: nothing leaks between the splits, and all classifiers have the same test examples.

It is independent of the code that makes the splits: groups, copies and look-alikes are searched
again, in the examples, the images and the records.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from medadv_jax.data.examples import Example, KnownPatients
from medadv_jax.data.splits import SPLITS
from medadv_jax.evaluation.checks.result import Check, check

_SIDE = 16  # of a difference hash, in bits
# Bits of 256 in which two files of one image may differ. Between different images of one kind
# about half of the bits of fine structure differ.
_ALIKE = 8


def difference_hashes(images: Iterable[np.ndarray]) -> np.ndarray:
    """Returns whether each grey patch is brighter than its left neighbour.

    That describes the content of an image, whatever its file, size or brightness.

    Args:
      images: n images (H, W, 3) uint8.

    Returns:
      (n, 256) bool.
    """
    hashes = []
    for image in images:
        small = Image.fromarray(image).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
        grey = np.asarray(small, int)
        hashes.append((grey[:, 1:] > grey[:, :-1]).ravel())
    return np.array(hashes).reshape(len(hashes), _SIDE**2)


def check_splits(
    splits: Mapping[str, Any],
    examples: Sequence[Example],
    predictions: pa.Table,
    training: Sequence[Mapping[str, Any]],
    hashes: Mapping[str, np.ndarray] | None = None,
) -> Check:
    """11. Splits share no group and no copy, checkpoints are chosen on validation, and all
    classifiers have the same test examples.

    Args:
      splits: the content of `splits.json`; unknown patients are a fault unless a split by image
        was asked for in it.
      examples: all of the data set.
      predictions: rows of `predictions.parquet`.
      training: lines of `metrics.jsonl`.
      hashes: example id -> a row of `difference_hashes`, of those in any split; None: look-alikes
        are not searched.
    """
    by_id = {example.id: example for example in examples}
    members = {name: [by_id[id_] for id_ in splits[name]] for name in SPLITS}
    counts, faults = {}, []
    for what, of in (
        ("ids", lambda e: e.id), ("md5 sums", lambda e: e.md5), ("groups", lambda e: e.group)
    ):  # fmt: skip
        sets = [{of(example) for example in part} for part in members.values()]
        counts[what] = sum(len(one & other) for one, other in itertools.combinations(sets, 2))
    alike = "not looked for"
    if hashes is not None:
        parts = [np.array([hashes[e.id] for e in part], bool) for part in members.values()]
        pairs = sum(_alike(one, other) for one, other in itertools.combinations(parts, 2))
        counts["look-alikes"], alike = pairs, f"{pairs}"
    faults += [f"{count} {what} in two splits" for what, count in counts.items() if count]
    known, asked = KnownPatients.of(examples), splits.get("asked", "patient")
    what = "" if known.enough else f"split by {known.describe(asked)} for {known.unknown} images; "
    if what and asked != "image":
        faults.append(what.removesuffix("; "))
    faults += _selection(training, len(members["validation"]))
    faults += _other_examples(predictions, {example.id for example in members["test"]})
    n = sum(len(part) for part in members.values())
    leaks = float(sum(counts.values()))
    return check(
        11, "all", "fail" if faults else "pass", leaks,
        "; ".join(faults)
        or f"{what}no id, md5 sum or group of {n} images is in two splits (look-alikes: {alike});"
        f" checkpoints chosen on {len(members['validation'])} validation images; every classifier"
        f" answers the same {len(members['test'])} test images",
    )  # fmt: skip


def _alike(one: np.ndarray, other: np.ndarray) -> int:
    """Returns how many pairs of two sets of hashes differ in few bits."""
    if not len(one) or not len(other):
        return 0
    signs = [2.0 * hashes.astype(np.float32) - 1 for hashes in (one, other)]
    differing = (signs[0].shape[1] - signs[0] @ signs[1].T) / 2
    return int((differing <= _ALIKE).sum())


def _selection(training: Sequence[Mapping[str, Any]], validation: int) -> list[str]:
    """Returns faults: validation accuracies that are no shares of `validation` images."""
    if not validation:
        return ["no validation images"]
    epochs = [line for line in training if "images/s" in line or _validated(line) is not None]
    without = {line["defense"] for line in epochs if _validated(line) is None}
    faults = [f"{defense} has epochs without validation" for defense in sorted(without)]
    others = set()
    for line in epochs:
        correct = (_validated(line) or 0.0) * validation
        if abs(correct - round(correct)) > 1e-3:
            others.add(line["defense"])
    return faults + [
        f"{defense} was chosen on others than the {validation} validation images"
        for defense in sorted(others)
    ]


def _validated(line: Mapping[str, Any]) -> float | None:
    """Returns the validation accuracy of an epoch, clean or under attack; None if it has none."""
    names = ("validation_accuracy", "validation_adversarial_accuracy")
    return next((line[name] for name in names if name in line), None)


def _other_examples(predictions: pa.Table, test: set[str]) -> list[str]:
    """Names the evaluations whose examples are not those of the test split, each once."""
    seen: dict[str, list[str]] = {}
    names = ("defense", "threat_model", "evaluation", "epsilon", "example")
    rows = zip(*(predictions[name].to_pylist() for name in names), strict=True)
    for *key, example in rows:
        seen.setdefault(" ".join(map(str, key)), []).append(example)
    return [
        f"{key} answers other examples than the test split"
        for key, found in seen.items()
        if sorted(found) != sorted(test)
    ]
