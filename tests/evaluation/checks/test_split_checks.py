"""Leaks between splits are seen."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from medadv_jax.data.splits import Example
from medadv_jax.evaluation.checks.run_all import check_splits, difference_hashes
from medadv_jax.evaluation.predictions import prediction_rows


def split_case():
    """Returns examples, the content of splits.json, lines of metrics.jsonl, hashes, records."""
    examples = [
        Example(f"e{i}", int(i % 2), f"g{i // 2}", 0, "", f"m{i}") for i in range(20)
    ]  # fmt: skip
    ids = [example.id for example in examples]
    splits = {"train": ids[:10], "validation": ids[10:14], "test": ids[14:]}
    training = [
        {"defense": "base", "epoch": 1, "images/s": 1.0, "validation_accuracy": 0.75},
        {"defense": "base", "epoch": 1, "loss": 1.0},
    ]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in ids]
    score = np.full(6, 0.5, np.float32)
    records = pa.concat_tables(
        prediction_rows((defense, "none", "clean", 0.0), examples[14:], score, score > 1)
        for defense in ("base", "adversarial")
    )
    return examples, splits, training, images, records


def split_verdict(examples, splits, training, images, records):
    hashes = dict(zip([e.id for e in examples], difference_hashes(images), strict=True))
    return check_splits(splits, examples, records, training, hashes)


def test_clean_splits_pass():
    result = split_verdict(*split_case())
    assert (result.verdict, result.value, result.defense) == ("pass", 0, "all")


FAULTS = ["id", "md5", "group", "look-alike", "not validation", "no validation", "examples"]


@pytest.mark.parametrize("fault", FAULTS)
def test_leaks(fault):
    examples, splits, training, images, records = split_case()
    if fault == "id":
        splits["validation"][0] = "e0"
    if fault == "md5":
        examples[15] = Example("e15", 1, "g7", 0, "", "m3")
    if fault == "group":
        examples[15] = Example("e15", 1, "g1", 0, "", "m15")
    if fault == "look-alike":  # another file of the same picture: brighter, and resaved
        images[15] = np.clip(images[3] * 0.8 + 20, 0, 255).astype(np.uint8)
    if fault == "not validation":  # a share of the 6 test images
        training[0]["validation_accuracy"] = 5 / 6
    if fault == "no validation":
        del training[0]["validation_accuracy"]
    if fault == "examples":
        records = records.slice(0, 11)
    result = split_verdict(examples, splits, training, images, records)
    assert result.verdict == "fail"
    assert "\n" not in result.explanation


def test_pictures_of_one_kind_are_no_copies():
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 3, 64)
    shape = 120 + 60 * np.sin(grid[:, None] + grid[None])  # what all of them share
    images = [
        np.clip(shape[..., None] + rng.normal(0, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
        for _ in range(30)
    ]
    hashes = difference_hashes(images).astype(int)
    apart = (hashes[:, None] != hashes[None]).sum(axis=2)[np.triu_indices(30, 1)]
    assert apart.min() > 16


@pytest.mark.parametrize(
    ("asked", "unknown", "verdict"),
    [(None, 0, "pass"), ("patient", 1, "fail"), (None, 1, "fail"), ("image", 1, "pass")],
)
def test_unknown_patients_fail_unless_a_split_by_image_was_asked_for(asked, unknown, verdict):
    examples, splits, *rest = split_case()
    examples[:unknown] = [dataclasses.replace(e, group=f"file:{e.id}") for e in examples[:unknown]]
    result = split_verdict(examples, splits | ({"asked": asked} if asked else {}), *rest)
    assert result.verdict == verdict
    assert ("split by image: patients unknown" in result.explanation) == bool(unknown)
