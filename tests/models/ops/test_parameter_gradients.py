"""Several devices sum the gradients of parameters in float32; one device does as before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medadv_jax.distributed import along_data
from medadv_jax.models.layers import Conv, HiddenDense

IMAGES = jax.random.normal(jax.random.key(0), (8, 9, 9, 3))
LAYERS = {
    "conv": (Conv(4, strides=(2, 2), padding=1, use_bias=True, dtype=jnp.bfloat16), IMAGES),
    "dense": (HiddenDense(4, dtype=jnp.bfloat16), IMAGES.reshape(8, -1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_devices_add_their_rounded_parts_in_float32(name):
    layer, inputs = LAYERS[name]

    def weighted(params, inputs, weights):
        out = layer.apply({"params": params}, inputs).astype(jnp.float32)
        return jnp.sum(out * weights)

    params = layer.init(jax.random.key(1), inputs)["params"]
    shape = layer.apply({"params": params}, inputs).shape
    weights = jax.random.normal(jax.random.key(2), shape)
    gradient = jax.jit(jax.grad(weighted))
    halves = [gradient(params, inputs[i : i + 4], weights[i : i + 4]) for i in (0, 4)]
    split = NamedSharding(along_data(jax.devices()[:2]), PartitionSpec("data"))
    found = gradient(params, *jax.device_put((inputs, weights), split))
    for part in ("kernel", "bias"):
        expected = halves[0][part] + halves[1][part]
        rounded = np.asarray(expected.astype(jnp.bfloat16), np.float32)
        assert (rounded != expected).any()  # so that a sum in bfloat16 would be seen
        np.testing.assert_array_equal(found[part], expected, err_msg=part)


@pytest.mark.parametrize(("dtype", "devices"), [("float32", 2), ("bfloat16", 1)])
def test_nothing_changes_for_float32_or_one_device(dtype, devices):
    layer = Conv(4, use_bias=True, dtype=jnp.dtype(dtype))
    split = NamedSharding(along_data(jax.devices()[:devices]), PartitionSpec("data"))
    images = jax.device_put(IMAGES, split)
    params = layer.init(jax.random.key(1), IMAGES)
    traced = str(jax.make_jaxpr(lambda x: layer.apply(params, x))(images))
    assert "shard_map" not in traced
    assert "custom_vjp" not in traced
