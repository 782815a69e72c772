"""The project's own programs, compiled for a target, and what they hold."""

import dataclasses
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import hlo
from benchmarks.aot_targets import TARGETS, Sheet, devices
from benchmarks.cases import DECAY, EPSILON, RELATIVE_STEP
from benchmarks.flops import CLASSES, Counts, layer_flops
from configs import default
from medadv_jax.classifier import Classifier, to_pixels
from medadv_jax.config import Config
from medadv_jax.defenses import get_defense
from medadv_jax.distributed import along_data
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Source, evaluation_attack
from medadv_jax.models.ops.convolution import CONV_IMPLS
from medadv_jax.training.augment import augment
from medadv_jax.training.build import assemble, training_classifier
from medadv_jax.training.optimizer import make_optimizer
from medadv_jax.training.state import abstract_state
from medadv_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Spec:
    """A program.

    Attributes:
      target: a key of `TARGETS`.
      program: "step": adversarial training; "clean_step"; "attack": an evaluation's, with folding;
        "augment": augmentation alone; "mesh": nothing, only the order of the devices.
      model: a name of `create_model`.
      dtype: of the network's computation.
      batch: images on each device.
      image_size: pixels, height = width.
      attack: a name of `ATTACKS`.
      num_steps: of it.
      blocks: of ResNet's stages, such as "1,1,1,1", to compile sooner; "": all.
      width: multiplies the channels.
      augment: whether the step turns and shifts the images.
      options: of the compiler, such as "a=1,b=true".
    """

    target: str = "h100"
    program: str = "step"
    model: str = "resnet50"
    dtype: str = "bfloat16"
    batch: int = 64
    image_size: int = 224
    attack: str = "pgd"
    num_steps: int = 10
    blocks: str = ""
    width: float = 1.0
    augment: bool = True
    options: str = ""


def compile_spec(spec: Spec, text_file: Path | None = None) -> dict[str, Any]:
    """Compiles a program; returns what it holds, or {"error": …} where the compiler refuses.

    `text_file`: is given the optimised HLO.
    """
    target = TARGETS[spec.target]
    mesh = along_data(devices(target))
    result: dict[str, Any] = {"spec": dataclasses.asdict(spec), "device": target.sheet.name}
    result["processes"] = [device.process_index for device in mesh.devices.flat]
    if spec.program == "mesh":
        return result
    classifier = _classifier(spec)
    start, used = time.time(), time.process_time()
    function, arguments = _PROGRAMS[spec.program](spec, classifier, mesh)
    options: Any = dict(pair.split("=") for pair in spec.options.split(",") if pair)
    try:
        compiled = function.lower(*arguments).compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:  # too large for the device, most often
        return result | {"error": " ".join(str(error).split())[:400]}
    finally:
        result["seconds"] = round(time.time() - start, 1)
        result["cpu_seconds"] = round(time.process_time() - used, 1)
    text = compiled.as_text()
    if text_file:
        text_file.write_text(text)
    variables = jax.eval_shape(lambda key: classifier.init(key, spec.image_size), jax.random.key(0))
    hidden = {k: v for k, v in variables["params"].items() if k != "fc"}  # the head is float32
    kernels = {x.shape for x in jax.tree.leaves(hidden) if x.ndim > 1}
    result |= hlo.describe(text, kernels) | _memory(compiled, text, arguments)
    result["floors"] = _floors(spec, target.sheet, classifier.network, result)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return result | {"compiler_bytes": usage.ru_maxrss * 1024}


def _classifier(spec: Spec) -> Classifier:
    """Returns the classifier as a run builds it."""
    classifier = assemble(_config(spec), [str(i) for i in range(CLASSES)]).bare
    if not spec.blocks:
        return classifier
    network: Any = classifier.network
    smaller = network.clone(num_blocks=tuple(int(n) for n in spec.blocks.split(",")))
    return dataclasses.replace(classifier, network=smaller)


def _config(spec: Spec) -> Config:
    config = default.get_config()
    # The default backend is the CPU, so that "auto" would choose the CPU's forms.
    gpu = TARGETS[spec.target].platform == "cuda" and "gpu" in CONV_IMPLS
    conv_impl = "gpu" if gpu else "plain"
    config.model.update(name=spec.model, dtype=spec.dtype, width=spec.width, conv_impl=conv_impl)
    config.attack.update(epsilon=EPSILON, relative_step=RELATIVE_STEP, decay=DECAY)
    config.train.update(attacks=spec.attack, num_steps=spec.num_steps)
    config.eval.num_steps = spec.num_steps
    if not spec.augment:
        config.data.augment.update(shift=0.0, rotation=0.0, brightness=0.0)
    return config


# Each returns a compiled function of the project and its abstract arguments on the mesh.


def _training(defense: str) -> Callable[[Spec, Classifier, Mesh], tuple[Any, tuple[Any, ...]]]:
    def make(spec: Spec, classifier: Classifier, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
        config = _config(spec)
        classifier = training_classifier(classifier, config)
        optimizer = make_optimizer(config.train.learning_rate, "constant", 1)
        objective = get_defense(defense).make_objective(config)
        step = make_train_step(classifier, optimizer, objective, config.data.augment)
        state = abstract_state(classifier, optimizer, mesh, spec.image_size)
        return step, (state, _batch(spec, mesh), _key(mesh), {})

    return make


def _attack(spec: Spec, classifier: Classifier, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    predictor, attacks = Predictor(classifier), [evaluation_attack(_config(spec), spec.attack)]

    def attack(variables: Any, batch: Any, key: jax.Array) -> jax.Array:
        return predictor.attack(attacks, Source("bare", variables), batch, key)

    optimizer = make_optimizer(1.0, "constant", 1)
    variables = abstract_state(classifier, optimizer, mesh, spec.image_size).variables()
    return jax.jit(attack), (variables, _batch(spec, mesh), _key(mesh))


def _augment(spec: Spec, classifier: Classifier, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    del classifier
    settings = _config(spec).data.augment

    def run(key: jax.Array, images: jax.Array) -> jax.Array:
        return augment(key, to_pixels(images), settings)

    return jax.jit(run), (_key(mesh), _batch(spec, mesh)["image"])


_PROGRAMS = {
    "step": _training("adversarial"),
    "clean_step": _training("base"),
    "attack": _attack,
    "augment": _augment,
}


def _size(spec: Spec) -> tuple[int, int, int]:
    return spec.image_size, spec.image_size, 3


def _batch(spec: Spec, mesh: Mesh) -> dict[str, Any]:
    count = spec.batch * mesh.size
    return {
        "image": _array(mesh, (count, *_size(spec)), jnp.uint8, "data"),
        "label": _array(mesh, (count,), jnp.int32, "data"),
        "index": _array(mesh, (count,), jnp.int32, "data"),
        "mask": _array(mesh, (count,), jnp.float32, "data"),
    }


def _key(mesh: Mesh) -> Any:
    return _array(mesh, (), jax.random.key(0).dtype)


def _array(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: str) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


def _memory(compiled: Any, text: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Returns bytes of one device; `donated`: share of the first argument's
    arrays whose memory the results use."""
    memory = compiled.memory_analysis()
    sizes = {
        name: getattr(memory, f"{name}_size_in_bytes")
        for name in ("argument", "output", "temp", "alias", "generated_code")
    }
    held = sizes["argument"] + sizes["output"] - sizes["alias"]
    # Temporary memory is one block on a GPU; a TPU's compiler also counts what lies in between.
    peak = max(held + sizes["temp"], getattr(memory, "peak_memory_in_bytes", 0))
    return {
        "peak_bytes": peak,
        "compiler_peak_bytes": getattr(memory, "peak_memory_in_bytes", None),
        "memory": sizes,
        "donated": hlo.aliases(text) / len(jax.tree.leaves(arguments[0])),
    }


def _floors(spec: Spec, sheet: Sheet, network: Any, found: dict[str, Any]) -> dict[str, float]:
    """Returns seconds of one run by the datasheet: of its products, and of its bytes."""
    seconds = sum(found["moved_bytes"].values()) / sheet.bandwidth
    flops = spec.batch * _flops(spec, network)
    return {
        "flops": flops,
        "arithmetic_seconds": flops / getattr(sheet, _rate(spec, found["products"])),
        "bandwidth_seconds": seconds,
    }


def _rate(spec: Spec, products: dict[str, int]) -> str:
    """Returns which number of the datasheet holds for most products."""
    highest = sum(count for kind, count in products.items() if "highest" in kind)
    exact = spec.dtype == "float32" and 2 * highest > sum(products.values())
    return "highest" if exact else spec.dtype


def _flops(spec: Spec, network: Any) -> int:
    """Returns the FLOPs of one image's products; see `benchmarks/flops.py`."""
    if spec.program == "augment":
        return 0
    images = jax.ShapeDtypeStruct((1, *_size(spec)), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    layers = layer_flops(lambda v, x: network.apply(v, x, train=False), variables, images)
    counts = Counts(sum(layers), layers[0])
    attack = (1 if spec.attack == "fgsm" else spec.num_steps) * counts.input_gradient
    return {"step": attack + 2 * counts.train, "clean_step": counts.train}.get(spec.program, attack)
