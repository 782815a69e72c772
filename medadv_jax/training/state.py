"""What a training step changes: parameters, batch statistics and the optimizer's state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medadv_jax.classifier import Classifier, Variables
from medadv_jax.training.optimizer import running_average

Trains = Callable[[str, str], bool]  # (collection, name of a layer) -> is it trained?


class WithAverage(NamedTuple):
    """The optimizer's state, and beside it the running average of what a step changes."""

    optimizer: Any
    average: Any  # {"params": as in `TrainState`, "batch_stats": …}


class TrainState(NamedTuple):
    """Everything that a step changes; frozen parameters are a separate tree, see `split`."""

    step: jax.Array  # () int32, steps taken
    params: Any  # {"params": …, "purifier": …}: the trained parameters only
    batch_stats: Any
    opt_state: Any  # the optimizer's; `WithAverage` if the weights are averaged

    def variables(self, frozen: Variables | None = None) -> Variables:
        """Returns the classifier's variables, merged with the `frozen` ones."""
        frozen = frozen or {}
        names = self.params.keys() | frozen.keys()
        merged = {n: {**frozen.get(n, {}), **self.params.get(n, {})} for n in names}
        return {**merged, "batch_stats": self.batch_stats}

    def deployed(self, frozen: Variables | None = None) -> Variables:
        """Returns the variables to validate and to deploy: the averaged ones, if there are any."""
        if not isinstance(self.opt_state, WithAverage):
            return self.variables(frozen)
        return self._replace(**self.opt_state.average).variables(frozen)


def train_all(collection: str, layer: str) -> bool:
    """Trains everything."""
    del collection, layer
    return True


def split(variables: Variables, trains: Trains) -> tuple[Variables, Variables]:
    """Returns (trained, frozen) parameters: two trees {"params": …, "purifier": …} without common
    leaves and without batch statistics."""
    trained, frozen = {}, {}
    for name in variables.keys() - {"batch_stats"}:
        layers = variables[name]
        trained[name] = {k: v for k, v in layers.items() if trains(name, k)}
        frozen[name] = {k: v for k, v in layers.items() if not trains(name, k)}
    trained, frozen = ({k: v for k, v in tree.items() if v} for tree in (trained, frozen))
    return trained, frozen


def take_step(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: Any,
    batch_stats: Any,
    average_decay: float,
) -> TrainState:
    """Returns the state after a step.

    Args:
      state: before it.
      optimizer: from `make_optimizer`.
      gradients: of the trained parameters.
      batch_stats: the network's running statistics after the step.
      average_decay: see `create_state`.
    """
    own, average = state.opt_state, None
    if isinstance(own, WithAverage):
        own, average = own
    updates, own = optimizer.update(gradients, own, state.params)
    params, step = optax.apply_updates(state.params, updates), state.step + 1
    if average is not None:
        new = {"params": params, "batch_stats": batch_stats}
        own = WithAverage(own, running_average(average, new, average_decay, step))
    return TrainState(step, params, batch_stats, own)


def create_state(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    image_size: int,
    variables: Variables | None = None,
    trains: Trains = train_all,
    average_decay: float = 0.0,
) -> tuple[TrainState, Variables]:
    """Returns the state before the first step and the frozen variables, replicated over `mesh`.

    Args:
      classifier: the classifier to train.
      optimizer: its state covers the trained parameters only.
      mesh: the devices.
      key: for fresh weights.
      image_size: pixels, height = width.
      variables: weights to start from; copied, because the state is donated. None: fresh ones.
      trains: which layers are trained.
      average_decay: above 0 the state holds the running average of the trained parameters and of
        the batch statistics, which `take_step` updates.
    """
    init = _make_init(classifier, optimizer, image_size, trains, average_decay)
    if jax.process_count() > 1:  # an array of one process cannot be an input of all
        variables = jax.device_get(variables)
    return jax.jit(init, out_shardings=NamedSharding(mesh, PartitionSpec()))(key, variables)


def abstract_state(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    image_size: int,
    trains: Trains = train_all,
    average_decay: float = 0.0,
) -> TrainState:
    """Returns shapes, dtypes and shardings of a state without computing it."""
    init = _make_init(classifier, optimizer, image_size, trains, average_decay)
    shapes, _ = jax.eval_shape(init, jax.random.key(0), None)
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _make_init(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    image_size: int,
    trains: Trains,
    average_decay: float,
) -> Callable[[jax.Array, Variables | None], tuple[TrainState, Variables]]:
    def init(key: jax.Array, variables: Variables | None) -> tuple[TrainState, Variables]:
        start = classifier.init(key, image_size) if variables is None else variables
        # Copies: an output that aliased its input would be lost when the state is donated.
        start = jax.tree.map(jnp.copy, start)
        params, frozen = split(start, trains)
        own = optimizer.init(params)
        if average_decay:
            average = {"params": params, "batch_stats": start["batch_stats"]}
            own = WithAverage(own, jax.tree.map(jnp.copy, average))
        return TrainState(jnp.int32(0), params, start["batch_stats"], own), frozen

    return init
