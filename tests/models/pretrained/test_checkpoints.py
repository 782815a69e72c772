"""A training's checkpoint: the state_dict is found in it, and what is beside is left out."""

import argparse
import collections

import numpy as np
import pytest

from medadv_jax.models.pretrained.read import read_weights
from tests.helpers import weight_files
from tests.helpers.weight_files import Call, Plain
from tests.models.pretrained.test_read import STATE, WRITERS, equal, refusal


@pytest.mark.parametrize(
    "container", ["model_state_dict", "net", "network", "weights", ("state_dict", "model")]
)
def test_the_state_dict_is_found_in_a_checkpoint(tmp_path, container):
    """Beside an optimizer, whose tensors have numbers, and a tensor that is a metric."""
    arrays = {**STATE, "best": np.array([71.5])}
    tensors = weight_files.state_dict(arrays)
    best = tensors.pop("best")
    outer, *inner = (container,) if isinstance(container, str) else container
    whole: dict = {outer: dict.fromkeys(inner, tensors) if inner else tensors}
    whole |= {"epoch": 3, "best": best, "optimizer": {"state": {0: {"step": best}}, "lr": 0}}
    path = weight_files.torch_zip(tmp_path / "w.pt", whole, list(arrays.values()))
    equal(read_weights(path).arrays, STATE)


def test_of_several_networks_the_usual_name_decides_else_they_are_named(tmp_path):
    numbers = [np.ones(2, np.float32), np.zeros(2, np.float32)]
    first, second = (
        {"conv.weight": weight_files.tensor(weight_files.storage(str(i), array), (2,))}
        for i, array in enumerate(numbers)
    )
    whole = {"ema_state_dict": second, "state_dict": first}
    path = weight_files.torch_zip(tmp_path / "w.pt", whole, numbers)
    equal(read_weights(path).arrays, {"conv.weight": numbers[0]})
    path = weight_files.torch_zip(tmp_path / "w.pt", {"gen": first, "disc": second}, numbers)
    assert "(gen, disc); keep one: torch.save(checkpoint['gen'], FILE)" in refusal(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_objects_beside_the_tensors_are_left_out(tmp_path, kind):
    """A metric of numpy, settings, a set: none is built, and the rest is read."""
    beside = {
        "auc": Plain(np.float64(0.93)),
        "curve": Plain(np.arange(3.0)),
        "args": Plain(argparse.Namespace(lr=0.1, tags=["a"])),
        "seen": Plain({1, 2}),
        "counts": Plain(collections.defaultdict(int, a=1)),
        "device": Call("torch.device", ("cpu",)),
    }
    state = weight_files.state_dict(STATE, legacy=kind == "legacy")
    for whole in ({"state_dict": state, **beside}, {**beside, **state}):
        path = WRITERS[kind](tmp_path / "w.pth", whole, list(STATE.values()))
        equal(read_weights(path).arrays, STATE)


def test_wrappers_are_taken_off_at_any_place(tmp_path):
    names = {
        "module._orig_mod.conv.weight": "conv.weight",
        "features.module.0.weight": "features.0.weight",
        "module.module.bn._orig_mod.bias": "bn.bias",
        "n_averaged": "n_averaged",
    }
    arrays = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
    expected = {names[name]: array for name, array in arrays.items()}
    path = weight_files.safetensors(tmp_path / "w.safetensors", arrays)
    equal(read_weights(path).arrays, expected)
    state = weight_files.state_dict(arrays)
    path = weight_files.torch_zip(tmp_path / "w.pth", state, list(arrays.values()))
    equal(read_weights(path).arrays, expected)
    twice = {"conv.weight": np.ones(1, np.float32), "module.conv.weight": np.zeros(1, np.float32)}
    equal(read_weights(weight_files.safetensors(tmp_path / "w.safetensors", twice)).arrays, twice)


def test_a_changed_bit_of_a_storage_is_refused(tmp_path):
    state = weight_files.state_dict(STATE)
    path = weight_files.torch_zip(tmp_path / "w.pth", state, list(STATE.values()))
    whole = bytearray(path.read_bytes())
    whole[whole.index(STATE["conv.weight"].tobytes()) + 5] ^= 1
    path.write_bytes(whole)
    assert "CRC" in refusal(path)
