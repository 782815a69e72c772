"""Files that torch and Keras write themselves, where these are installed."""

import os

import numpy as np
import pytest

from medadv_jax.models.pretrained.read import read_weights
from tests.models.pretrained.test_read import equal, refusal


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_itself(tmp_path, zipped):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = layer.to(memory_format=torch.channels_last).state_dict()
    state["cut"] = torch.arange(20.0)[3:9].reshape(2, 3).t()
    state["bfloat16"] = torch.ones(3, dtype=torch.bfloat16)
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    raw = read_weights(tmp_path / "w.pth")
    assert list(raw.arrays) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(
            raw.arrays[name].astype(np.float32), value.float().numpy(), strict=True
        )
    torch.save(layer, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert "torch.nn.modules" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("ending", [".weights.h5", ".keras", ".h5"])
@pytest.mark.filterwarnings("ignore")  # Keras' own
def test_files_of_keras_itself(tmp_path, ending):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    keras.layers.Conv2D(1, 1)  # the next one is numbered on
    images = keras.Input((8, 8, 3))
    hidden = keras.layers.Conv2D(4, 3, use_bias=False)(images)
    hidden = keras.layers.BatchNormalization(scale=False)(hidden)
    hidden = keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling2D()(hidden))
    model = keras.Model(images, keras.layers.Dense(5, name="predictions")(hidden))
    path = tmp_path / f"w{ending}"
    (model.save_weights if ending == ".weights.h5" else model.save)(path)
    kernel, *norm = (np.asarray(weight.value) for weight in model.weights)
    names = [f"batch_normalization/{name}" for name in ("beta", "moving_mean", "moving_variance")]
    names = ["conv2d/kernel", *names, "predictions/kernel", "predictions/bias"]
    equal(read_weights(path).arrays, dict(zip(names, [kernel, *norm], strict=True)))
