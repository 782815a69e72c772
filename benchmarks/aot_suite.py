"""Which programs `make aot` and `make aot-check` compile."""

import dataclasses

from benchmarks.aot_programs import Spec

_NETWORKS = ("vgg16", "resnet50")
_SMALL = Spec(model="resnet50", blocks="1,1,1,1", image_size=64, num_steps=3)

# What several devices exchange; an iteration of the attack; a TPU, by a network that compiles soon.
SUITE = [
    *(Spec(target="4xh100", model=model) for model in _NETWORKS),
    *(dataclasses.replace(_SMALL, target=target) for target in ("v5e", "v5e:2x2")),
    *(Spec(program="attack", model=m, dtype=d) for m in _NETWORKS for d in ("bfloat16", "float32")),
    Spec(target="v5e", program="augment", batch=128),
    *(dataclasses.replace(_SMALL, target=target) for target in ("2xv5e:2x2", "v5e:4x4")),
    Spec(target="8xh100", model="resnet50"),
]

# The largest batch of a training step on one device, from a first guess.
LARGEST = [
    Spec(model=model, dtype=dtype, batch=batch)
    for dtype, batch in (("bfloat16", 640), ("float32", 320))
    for model in _NETWORKS
]

# Few and small, for continuous integration; and topologies of several processes.
CHECKED = [
    *(Spec(target=t, program="mesh") for t in ("2x4xh100", "2xv5e:2x2", "v5e:4x4")),
    *(Spec(target="4xh100", model=m, batch=16, num_steps=3) for m in _NETWORKS),
    *(Spec(program="attack", model=m, batch=16, num_steps=3) for m in _NETWORKS),
]  # fmt: skip
