"""The generated images: the same at every call and size, and alike within a patient."""

import itertools

import numpy as np
import pytest
import scipy.fft

from medadv_jax.data.phantoms import KINDS, generate
from medadv_jax.data.phantoms.fields import texture

both_kinds = pytest.mark.parametrize("kind", sorted(KINDS))


def images_of(examples: list[dict]) -> np.ndarray:
    return np.stack([example["image"] for example in examples]).astype(np.float32) / 255


def halved(images: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor × factor squares."""
    batch, height, width, channels = images.shape
    cut = images.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return cut.mean(axis=(2, 4))


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[dict]]:
    return {kind: list(generate(kind, 120, 48, 0)) for kind in KINDS}


@both_kinds
def test_what_is_yielded(kind, drawn):
    for i, example in enumerate(drawn[kind]):
        assert example["image"].shape == (48, 48, 3)
        assert example["image"].dtype == np.uint8
        assert example["id"] == f"{kind}-{i:06d}"
        assert example["source_split"] == ""
    seen = {example["magnification"] for example in drawn[kind]}
    assert seen == ({0} if kind == "xray" else {40, 100, 200, 400})
    images = images_of(drawn[kind])
    assert images.std() > 0.1
    if kind == "xray":
        assert np.all(images[..., :1] == images)


@both_kinds
def test_the_seed_and_the_number_alone_choose_an_image(kind, drawn):
    again = [example["md5"] for example in generate(kind, 7, 48, 0)]
    assert again == [example["md5"] for example in drawn[kind][:7]]
    other = {example["md5"] for example in generate(kind, 7, 48, 1)}
    assert not other & set(again)


@both_kinds
def test_no_two_images_are_equal(kind, drawn):
    assert len({example["md5"] for example in drawn[kind]}) == len(drawn[kind])


@both_kinds
def test_classes_are_balanced_and_a_patient_has_one(kind, drawn):
    labels = [example["label"] for example in drawn[kind]]
    assert sum(labels) * 2 == len(labels)
    members: dict[str, list[int]] = {}
    for example in drawn[kind]:
        members.setdefault(example["group"], []).append(example["label"])
    assert all(len(set(owned)) == 1 for owned in members.values())
    sizes = [len(owned) for owned in members.values()]
    assert max(sizes) <= 6
    assert sum(size >= 3 for size in sizes) >= len(sizes) - 2  # the last of a class may be cut


@both_kinds
def test_images_of_a_patient_are_alike(kind, drawn):
    """Within a class, so that the label explains nothing of it."""
    near, far = [], []
    images = halved(images_of(drawn[kind]), 4)
    for i, j in itertools.combinations(range(len(images)), 2):
        one, other = drawn[kind][i], drawn[kind][j]
        if one["label"] == other["label"]:
            distances = near if one["group"] == other["group"] else far
            distances.append(np.abs(images[i] - images[j]).mean())
    assert np.mean(near) < 0.85 * np.mean(far)


@both_kinds
def test_every_size_shows_the_same(kind):
    small = images_of(list(generate(kind, 12, 32, 3)))
    large = halved(images_of(list(generate(kind, 12, 96, 3))), 3)
    difference = np.abs(small[:, None] - large[None]).mean(axis=(2, 3, 4))
    assert np.all(difference.argmin(axis=1) == np.arange(12))
    assert np.diag(difference).max() < 0.035


@both_kinds
def test_the_classes_differ_by_more_than_the_attack_can_move(kind, drawn):
    """Opacities brighten the lungs, nuclei darken the tissue: by far more than 2 ε somewhere."""
    images = halved(images_of(drawn[kind]), 6)
    labels = np.array([example["label"] for example in drawn[kind]])
    difference = np.abs(images[labels == 1].mean(axis=0) - images[labels == 0].mean(axis=0))
    assert difference.max() > 0.06


@both_kinds
@pytest.mark.parametrize("size", [32, 299])
def test_the_smallest_and_the_largest_size(kind, size):
    (example,) = generate(kind, 1, size, 0)
    assert example["image"].shape == (size, size, 3)


@both_kinds
def test_what_cannot_be_drawn_is_refused(kind):
    with pytest.raises(ValueError, match="choose from xray, histology"):
        next(generate("mri", 1, 48, 0))
    with pytest.raises(ValueError, match="at least 32"):
        next(generate(kind, 1, 31, 0))


def test_a_texture_has_unit_variance_and_no_wave_outside_its_band():
    fields = np.stack([texture(np.random.default_rng(i), 64, 4, 10) for i in range(40)])
    np.testing.assert_allclose(fields.var(), 1, rtol=0.1)
    power = np.square(np.asarray(scipy.fft.dctn(fields, axes=(1, 2), norm="ortho"))).sum(axis=0)
    waves = np.hypot(np.arange(64)[:, None], np.arange(64))
    assert power[(waves < 2) | (waves > 12)].sum() < 1e-3 * power.sum()
    assert power[(waves > 4) & (waves < 10)].sum() > 0.8 * power.sum()
