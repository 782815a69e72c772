"""Which programs `make aot` and `make aot-check` compile."""

import dataclasses

from benchmarks.aot_programs import Spec

_NETWORKS = ("vgg16", "resnet50")
_TPU = Spec(target="v5e", model="resnet50", blocks="1,1,1,1", image_size=64, num_steps=3)

# One H100: what an iteration of the attack holds, in both dtypes; several: what devices exchange.
SUITE = [
    *(Spec(program="attack", model=m, dtype=d) for m in _NETWORKS for d in ("bfloat16", "float32")),
    *(Spec(target=t, model=m) for t in ("4xh100", "8xh100") for m in _NETWORKS),
    Spec(target="v5e", program="augment", batch=32),
    *(dataclasses.replace(_TPU, target=t) for t in ("v5e", "v5e:2x2", "2xv5e:2x2", "v5e:4x4")),
]  # fmt: skip

# The largest batch of a training step on one device.
LARGEST = [Spec(model=m, dtype=d) for m in _NETWORKS for d in ("bfloat16", "float32")]

# Few and small, for continuous integration; and topologies of several processes.
CHECKED = [
    *(Spec(target=t, program="mesh") for t in ("2x4xh100", "2xv5e:2x2", "v5e:4x4")),
    *(Spec(target="4xh100", model=m, batch=16, num_steps=3) for m in _NETWORKS),
    *(Spec(program="attack", model=m, batch=16, num_steps=3) for m in _NETWORKS),
]  # fmt: skip
