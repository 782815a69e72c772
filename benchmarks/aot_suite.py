"""Which programs `make aot` and `make aot-check` compile."""

import dataclasses

from benchmarks.aot_programs import Spec

_NETWORKS = ("vgg16", "resnet50")
_TPUS = ("v5e", "v5e:2x2", "2xv5e:2x2", "v5e:4x4")
_SMALL = Spec(model="resnet50", blocks="1,1,1,1", image_size=64, num_steps=3)

# Programs, and whether the largest batch is searched, from a first guess: training on one GPU; what
# several devices exchange; the evaluation's attack; TPUs, by a network that compiles soon.
SUITE = [
    (Spec(model="vgg16", batch=1024), True),
    (Spec(model="resnet50", batch=1024), True),
    *((Spec(model=model, dtype="float32", batch=128), False) for model in _NETWORKS),
    *((Spec(target="4xh100", model=model), False) for model in _NETWORKS),
    (Spec(target="8xh100", model="resnet50"), False),
    *(
        (Spec(program="attack", model=model, dtype=dtype), False)
        for model in _NETWORKS
        for dtype in ("bfloat16", "float32")
    ),
    *((dataclasses.replace(_SMALL, target=t), False) for t in _TPUS),
    *((Spec(target="v5e", program="clean_step", blocks="1", batch=128, augment=augment), False)
      for augment in (True, False)),
]  # fmt: skip

# Few and small, for continuous integration; and topologies of several processes.
CHECKED = [
    *(Spec(target=t, program="mesh") for t in ("2x4xh100", "2xv5e:2x2", "v5e:4x4")),
    *(Spec(target="4xh100", model=m, batch=16, num_steps=3) for m in _NETWORKS),
    *(Spec(program="attack", model=m, batch=16, num_steps=3) for m in _NETWORKS),
]  # fmt: skip
