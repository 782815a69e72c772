import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.default import get_config
from medadv_jax.data.loader import Dataset, list_dataset, load_dataset, make_loader, steps_per_epoch
from medadv_jax.data.splits import Example


def _dataset(count: int = 23) -> Dataset:
    """Image i is filled with i."""
    examples = tuple(Example(f"e{i}", i % 2, f"g{i // 3}", 0, "", "") for i in range(count))
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(count)]
    return Dataset("toy", ("no", "yes"), examples, {}, images)


def _batches(indices, batch_size, seed=None, epoch=0, num_threads=2):
    loader = make_loader(
        _dataset(), indices, batch_size, shuffle_seed=seed, epoch=epoch, num_threads=num_threads
    )
    return list(loader)


def _order(batches) -> list[int]:
    return [int(i) for batch in batches for i in batch["index"][batch["mask"] > 0]]


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("count", "batch_size"), [(23, 5), (20, 5), (3, 8), (1, 1), (9, 4)])
def test_one_pass_sees_each_example_once(count, batch_size, seed, num_threads):
    indices = np.arange(count)[::-1]
    batches = _batches(indices, batch_size, seed, num_threads=num_threads)
    assert len(batches) == steps_per_epoch(count, batch_size)
    assert sorted(_order(batches)) == list(range(count))
    for batch in batches:
        arrays: dict[str, Any] = {**batch}
        assert {key: (value.shape, value.dtype.name) for key, value in arrays.items()} == {
            "image": ((batch_size, 4, 4, 3), "uint8"),
            "label": ((batch_size,), "int32"),
            "index": ((batch_size,), "int32"),
            "mask": ((batch_size,), "float32"),
        }
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["label"], batch["index"] % 2)
        assert set(batch["mask"]) <= {0.0, 1.0}


def test_without_a_seed_the_order_is_the_given_one():
    indices = [7, 3, 3, 11, 0]
    assert _order(_batches(indices, 2)) == indices


def test_the_last_batch_repeats_its_own_examples_in_turn():
    last = _batches(range(10), 8)[-1]
    np.testing.assert_array_equal(last["index"], [8, 9, 8, 9, 8, 9, 8, 9])
    np.testing.assert_array_equal(last["mask"], [1, 1, 0, 0, 0, 0, 0, 0])


def test_the_order_depends_on_seed_and_epoch_alone():
    runs = {
        (seed, epoch): _order(_batches(range(20), 5, seed, epoch))
        for seed, epoch in itertools.product(range(3), range(3))
    }
    assert len({tuple(order) for order in runs.values()}) == 9
    assert list(range(20)) not in runs.values()
    for (seed, epoch), order in runs.items():
        # neither the batch size nor the number of threads matters
        assert _order(_batches(range(20), 7, seed, epoch, num_threads=0)) == order


def test_the_order_is_a_fair_shuffle():
    first = [_order(_batches(range(4), 4, 0, epoch, 0))[0] for epoch in range(60)]
    assert np.bincount(first, minlength=4).min() > 4  # 15 expected, 3.4 is one deviation


def test_no_examples_are_no_batches():
    assert _batches([], 4) == []
    assert steps_per_epoch(0, 4) == 0


def test_a_loader_may_be_left_early():
    loader = make_loader(_dataset(), range(23), 2, shuffle_seed=0)
    assert next(loader)["image"].shape == (2, 4, 4, 3)
    del loader


def test_real_breakhis(real_data_dir: Path, tmp_path: Path):
    config: Any = get_config().data
    config.name, config.dir, config.cache_dir = "breakhis", str(real_data_dir), str(tmp_path)
    config.image_size = 32
    dataset = load_dataset(config)
    assert list_dataset(config).count == len(dataset.examples) == 138
    assert np.bincount(dataset.labels).tolist() == [43, 95]
    assert dataset.report["rejected"] == []
    assert {example.magnification for example in dataset.examples} == {40, 100, 200, 400}
    # the slides 22549AB, CD and G, which lie in three folders, are one case
    case = [example.id for example in dataset.examples if example.group == "14-22549"]
    assert {example_id.split("-")[2] for example_id in case} == {"22549AB", "22549CD", "22549G"}
    means = np.stack([dataset.source[i] for i in range(0, 138, 10)]).mean((0, 1, 2))
    assert means[1] < min(means[0], means[2])  # H&E is pink and violet: little green


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_real_chest_xrays(real_data_dir: Path, tmp_path: Path, fit: str):
    config: Any = get_config().data
    config.dir, config.cache_dir = str(real_data_dir / "chest_xray_original"), str(tmp_path)
    config.image_size, config.fit = 32, fit
    dataset = load_dataset(config)
    assert np.bincount(dataset.labels).tolist() == [20, 20]
    assert {example.source_split for example in dataset.examples} == {"train"}
    images = np.stack([dataset.source[i] for i in range(40)]).astype(int)
    assert np.ptp(images, axis=-1).max() <= 3  # grey
    borders = images[:, [0, -1]].max((1, 2, 3)) == 0
    assert borders.mean() > 0.9 if fit == "pad" else borders.mean() < 0.1


@pytest.mark.parametrize("kind", ["xray", "histology"])
def test_phantoms_go_through_the_same_cache(tmp_path: Path, monkeypatch, kind: str):
    config: Any = get_config().data
    config.name, config.cache_dir, config.image_size = "phantoms", str(tmp_path), 32
    config.phantom_kind, config.phantom_images = kind, 6
    dataset = load_dataset(config)
    assert list_dataset(config).count == len(dataset.examples) == 6
    assert dataset.labels.sum() == 3
    assert dataset.source[0].shape == (32, 32, 3)
    config.phantom_seed = 1
    other = load_dataset(config)
    config.phantom_seed = 0
    assert (other.source[0] != dataset.source[0]).any()
    monkeypatch.setattr("medadv_jax.data.phantoms.generate", None)
    assert load_dataset(config).examples == dataset.examples
