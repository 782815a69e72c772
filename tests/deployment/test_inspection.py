"""What the page shows of an image is what the model says."""

import numpy as np
import pytest

from medadv_jax.deployment import attack_images
from medadv_jax.deployment.inspection import Inspector
from tests.helpers.tiny import make_model

CLASSES = ("cat", "<b>dog")


@pytest.fixture(scope="module")
def inspector():
    return Inspector(make_model(CLASSES, purified=True, detectors={"squeezing": -1.0}))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_a_look_is_what_the_model_says(inspector, image):
    view, said = inspector.look(image), inspector.model.predict(image[None])
    np.testing.assert_allclose([*view.probability.values()], said.probability[0], atol=1e-6)
    assert view.predicted == CLASSES[said.label[0]]
    score, limit, flagged = view.detectors["squeezing"]
    assert (limit, flagged) == (-1.0, True)
    np.testing.assert_allclose(score, said.scores["squeezing"][0], atol=1e-6)
    assert view.detectors["reconstruction"][1:] == (None, False)
    np.testing.assert_array_equal(view.pictures["Image, as the model reads it"], image)
    assert len(view.pictures) == 3


def test_attacks_of_all_radii_are_one_program(inspector, image):
    """Within the radius; the perturbation is amplified as its caption says."""
    attack_images._compiled.cache_clear()
    clean = inspector.look(image)
    before = clean.probability[clean.predicted]
    for levels in (1, 5, 16):
        view = inspector.attack(image, levels)
        found, perturbation, purified = (np.asarray(of) for of in view.pictures.values())
        change = found.astype(int) - image
        assert 0 < abs(change).max() <= levels
        gain = 127 // levels
        assert f"Perturbation, amplified {gain} times" in view.pictures
        np.testing.assert_array_equal(perturbation, 128 + gain * change)
        assert purified.shape == image.shape
        assert view.probability[clean.predicted] < before
        said = inspector.model.predict(found[None]).probability[0]
        np.testing.assert_allclose([*view.probability.values()], said, atol=1e-6)
    for gradient in ("full", "bpda"):
        run = attack_images._compiled(inspector.model.classifier, "pgd", gradient)
        assert run._cache_size() == 1
