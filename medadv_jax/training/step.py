"""The compiled training step, the state that it changes, and the devices that it runs on.

The step is one program, traced once: augmentation, attack, forward and backward pass, update. The
batch is sharded over the mesh axis `data`, the state is replicated and donated; jit puts in the
one all-reduce of the gradients, and BatchNorm sees the whole batch.

Imports no more than jax, flax, optax and ml_collections, so that a benchmark needs no more.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medadv_jax.classifier import Classifier, Variables, to_pixels
from medadv_jax.config import Config
from medadv_jax.defenses import objectives
from medadv_jax.defenses.objectives import Metrics, Objective
from medadv_jax.training.augment import augment

Batch = Mapping[str, Any]  # image uint8 (B, H, W, 3), label int32 (B,), index, mask float32 (B,)


class TrainState(NamedTuple):
    """All that a step changes. What it leaves alone is a tree of its own; see `split`."""

    step: jax.Array  # () int32, steps taken
    params: Any  # {"params": …, "purifier": …}: those that are trained, and only those
    batch_stats: Any
    opt_state: Any

    def variables(self, frozen: Variables | None = None) -> Variables:
        """Returns the classifier's variables, `frozen` among them."""
        frozen = frozen or {}
        names = self.params.keys() | frozen.keys()
        merged = {n: {**frozen.get(n, {}), **self.params.get(n, {})} for n in names}
        return {**merged, "batch_stats": self.batch_stats}


Trains = Callable[[str, str], bool]  # (collection, name of a layer) -> is it trained?


def train_all(collection: str, layer: str) -> bool:
    """Trains everything."""
    del collection, layer
    return True


def split(variables: Variables, trains: Trains) -> tuple[Variables, Variables]:
    """Returns the parameters that are trained, and those that are not: two trees
    {"params": …, "purifier": …} without common leaves, and without batch statistics."""
    trained, frozen = {}, {}
    for name in variables.keys() - {"batch_stats"}:
        layers = variables[name]
        trained[name] = {k: v for k, v in layers.items() if trains(name, k)}
        frozen[name] = {k: v for k, v in layers.items() if not trains(name, k)}
    trained, frozen = ({k: v for k, v in tree.items() if v} for tree in (trained, frozen))
    return trained, frozen


def make_deterministic() -> None:
    """Lets XLA choose only kernels that give the same bits each time; they are slower.

    For GPUs, where sums by atomic additions, and convolutions chosen by timing, may differ from
    run to run. Has no effect once a device was used in this process.
    """
    flag = "--xla_gpu_deterministic_ops=true"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def keep_programs(folder: str) -> None:
    """Keeps compiled programs in `folder`, where the next process finds them; "": as JAX is set.

    Those that took less than a fifth of a second are not worth a file.
    """
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def make_mesh() -> Mesh:
    """Returns all devices of all processes along one axis, `data`."""
    return _along_data(jax.devices())


def make_local_mesh() -> Mesh:
    """Returns the devices of this process along one axis, `data`."""
    return _along_data(jax.local_devices())


def _along_data(devices: list[Any]) -> Mesh:
    # By position: the names of the first two differ between versions of jax.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def put_batch(mesh: Mesh, batch: Batch) -> dict[str, jax.Array]:
    """Places the arrays of a batch, split along their first axis over the devices of `mesh`.

    Where the mesh has devices of other processes, each process gives its part of the batch.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def make_key(mesh: Mesh, seed: int, number: int) -> jax.Array:
    """Returns key `number` of a seed on every device of `mesh`, those of other processes too."""

    def make() -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed), number)

    return jax.jit(make, out_shardings=NamedSharding(mesh, PartitionSpec()))()


def to_local(mesh: Mesh, tree: Any) -> Any:
    """Returns a replicated tree, from whatever mesh, on every device of this process' `mesh`."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(array: jax.Array) -> jax.Array:
        if array.is_fully_addressable:
            return array
        return jax.device_put(array.addressable_data(0), sharding)

    return jax.tree.map(place, tree)


def make_optimizer(
    learning_rate: float, schedule: str, total_steps: int
) -> optax.GradientTransformation:
    """Returns Adam (Kingma & Ba 2015); `schedule`: "constant", or "cosine" to 0 at the end."""
    if schedule == "cosine":
        return optax.adam(optax.cosine_decay_schedule(learning_rate, total_steps))
    return optax.adam(learning_rate)


def create_state(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    image_size: int,
    variables: Variables | None = None,
    trains: Trains = train_all,
) -> tuple[TrainState, Variables]:
    """Returns the state before the first step and what stays frozen, replicated over `mesh`.

    Args:
      classifier: what is trained.
      optimizer: its optimizer; its state is of what is trained, alone.
      mesh: the devices.
      key: for fresh weights.
      image_size: pixels, height = width.
      variables: weights to start from; copied, so that donating the state leaves them alone.
      trains: which layers are trained.
    """
    init = _make_init(classifier, optimizer, image_size, trains)
    if jax.process_count() > 1:  # an array on one process' devices is none on all devices
        variables = jax.device_get(variables)
    return jax.jit(init, out_shardings=NamedSharding(mesh, PartitionSpec()))(key, variables)


def abstract_state(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    image_size: int,
    trains: Trains = train_all,
) -> TrainState:
    """Returns shapes, dtypes and shardings of a state, without computing one."""
    init = _make_init(classifier, optimizer, image_size, trains)
    shapes, _ = jax.eval_shape(init, jax.random.key(0), None)
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _make_init(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    image_size: int,
    trains: Trains,
) -> Callable[[jax.Array, Variables | None], tuple[TrainState, Variables]]:
    def init(key: jax.Array, variables: Variables | None) -> tuple[TrainState, Variables]:
        start = classifier.init(key, image_size) if variables is None else variables
        # Copies: an output that aliased its input would be lost when the state is donated.
        start = jax.tree.map(jnp.copy, start)
        params, frozen = split(start, trains)
        state = TrainState(jnp.int32(0), params, start["batch_stats"], optimizer.init(params))
        return state, frozen

    return init


def make_train_step(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    augmentation: Config,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the compiled step: (state, batch, key, frozen) -> (state, metrics of the batch).

    The state is donated; `frozen` is left out where everything is trained. `key` is the same for
    all steps: the step folds its number in. Metrics are () float32: loss, those of the objective,
    and count, the number of examples that are not padding.
    """

    def step(
        state: TrainState, batch: Batch, key: jax.Array, frozen: Variables | None = None
    ) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
        augment_key, attack_key, dropout_key = keys
        pixels = augment(augment_key, to_pixels(batch["image"]), augmentation)
        inputs = objectives.Batch(pixels, batch["label"], batch["mask"])
        folded = classifier.fold(state.variables(frozen))
        logits_fn = classifier.folded().logits_fn(folded, objective.gradient)
        examples = objective.make_examples(logits_fn, *inputs, attack_key)

        # Of the trained parameters alone: frozen layers get no weight gradients.
        def loss_fn(params: Any) -> tuple[jax.Array, objectives.Loss]:
            variables = state._replace(params=params).variables(frozen)
            loss = objective.loss(classifier, variables, examples, inputs, dropout_key)
            return loss.value, loss

        gradients, loss = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss.value, **loss.metrics, "count": jnp.sum(inputs.mask)}
        return TrainState(state.step + 1, params, loss.batch_stats, opt_state), metrics

    return jax.jit(step, donate_argnums=0)
