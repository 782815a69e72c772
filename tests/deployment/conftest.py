"""A tiny network in place of each, for the models of this folder."""

import pytest

from medadv_jax import models
from tests.helpers.tiny import TinyNet


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        for name in models.MODELS:
            patch.setitem(models.MODELS, name, TinyNet)
        yield
