"""The compiled training step, the state that it changes, and the devices that it runs on.

The step is one program, traced once: augmentation, attack, forward and backward pass, update. The
batch is sharded over the mesh axis `data`, the state is replicated and donated; jit puts in the
one all-reduce of the gradients, and BatchNorm sees the whole batch.

Imports no more than jax, flax, optax and ml_collections, so that a benchmark needs no more.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.augment import augment
from medadv_jax.classifier import Classifier, Variables, to_pixels
from medadv_jax.config import Config
from medadv_jax.defenses import ExamplesFn

Batch = Mapping[str, Any]  # image uint8 (B, H, W, 3), label int32 (B,), index, mask float32 (B,)
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # () int32, steps taken
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> Variables:
        """Parameters and batch statistics, as the network takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_mesh() -> Mesh:
    """Returns all devices along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def put_batch(mesh: Mesh, batch: Batch) -> dict[str, jax.Array]:
    """Places the arrays of a batch, split along their first axis over the devices of `mesh`."""
    return jax.device_put(dict(batch), NamedSharding(mesh, PartitionSpec("data")))


def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns Adam (Kingma & Ba 2015) under the schedule of `config.train`."""
    train = config.train
    if train.schedule == "cosine":
        rate = optax.cosine_decay_schedule(train.learning_rate, train.epochs * steps_per_epoch)
        return optax.adam(rate)
    return optax.adam(train.learning_rate)


def create_state(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    image_size: int,
    variables: Variables | None = None,
) -> TrainState:
    """Returns the state before the first step, replicated over `mesh`.

    Args:
      classifier: what is trained.
      optimizer: its optimizer.
      mesh: the devices.
      key: for fresh weights.
      image_size: pixels, height = width.
      variables: weights to start from; copied, so that donating the state leaves them alone.
    """

    def init(key: jax.Array, variables: Variables | None) -> TrainState:
        start = classifier.init(key, image_size) if variables is None else variables
        # Copies: an output that aliased its input would be lost when the state is donated.
        params = jax.tree.map(jnp.copy, start["params"])
        batch_stats = jax.tree.map(jnp.copy, start.get("batch_stats", {}))
        return TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params))

    return jax.jit(init, out_shardings=NamedSharding(mesh, PartitionSpec()))(key, variables)


def abstract_state(
    classifier: Classifier, optimizer: optax.GradientTransformation, mesh: Mesh, image_size: int
) -> TrainState:
    """Returns shapes, dtypes and shardings of a state, without computing one."""

    def init(key: jax.Array) -> TrainState:
        variables = classifier.init(key, image_size)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params))

    sharding = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def make_train_step(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    make_examples: ExamplesFn,
    augmentation: Config,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Returns the compiled step: (state, batch, key) -> (state, metrics of the batch).

    The state is donated. `key` is the same for all steps: the step folds its number in. Metrics
    are () float32: loss, accuracy on the clean images and, if there are adversarial ones,
    adversarial_accuracy; count is the number of examples that are not padding.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        augment_key, attack_key, dropout_key = jax.random.split(
            jax.random.fold_in(key, state.step), 3
        )
        labels, mask = batch["label"], batch["mask"]
        pixels = augment(augment_key, to_pixels(batch["image"]), augmentation)
        logits_fn = classifier.logits_fn(state.variables)
        examples = make_examples(logits_fn, pixels, labels, mask, attack_key)
        columns = examples.images.shape[1]
        flat = examples.images.reshape(-1, *pixels.shape[1:])

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, batch_stats = classifier.train_logits(variables, flat, dropout_key)
            losses = cross_entropy(logits, jnp.repeat(labels, columns))
            return jnp.vdot(examples.weights.ravel(), losses), (logits, batch_stats)

        (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = _batch_metrics(loss, logits.reshape(-1, columns, logits.shape[-1]), labels, mask)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def _batch_metrics(
    loss: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> Metrics:
    """Returns the metrics of one batch; logits (B, V, K), column 0 clean."""
    right = (jnp.argmax(logits, axis=-1) == labels[:, None]) * mask[:, None]
    accuracy = jnp.sum(right, axis=0) / jnp.maximum(jnp.sum(mask), 1.0)
    metrics = {"loss": loss, "accuracy": accuracy[0], "count": jnp.sum(mask)}
    if logits.shape[1] > 1:
        metrics["adversarial_accuracy"] = jnp.mean(accuracy[1:])
    return metrics
