"""The compiled training step.

The step is one program, traced once: augmentation, attack, forward and backward pass, update. The
batch is sharded over the mesh axis `data`; the state is replicated and donated. Devices synchronise
gradients once a step, and BatchNorm's statistics are of the whole batch.

This module needs jax, flax, optax and ml_collections only, so that a benchmark can import it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medadv_jax.classifier import Classifier, Variables, to_pixels
from medadv_jax.config import Config
from medadv_jax.defenses import objectives
from medadv_jax.defenses.objectives import Metrics, Objective
from medadv_jax.defenses.weight_perturbation import perturb_weights
from medadv_jax.distributed import Batch
from medadv_jax.training.augment import augment
from medadv_jax.training.state import TrainState, take_step


def make_train_step(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    augmentation: Config,
    class_weights: np.ndarray | None = None,
    average_decay: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the compiled step: (state, batch, key, frozen) -> (state, metrics of the batch).

    The state is donated. `frozen` holds the parameters that are not trained; omit it if all are.
    `key` is the same for all steps: the step folds its number in. Metrics are () float32: loss,
    those of the objective, and count, the number of examples that are not padding.

    Args:
      classifier: the classifier to train.
      optimizer: from `make_optimizer`.
      objective: the examples of a batch, and the loss on them.
      augmentation: `config.data.augment`.
      class_weights: (K,) float32, a factor of the loss of each class; None: 1.
      average_decay: that of the state; see `create_state`.
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
        if class_weights is not None:
            factors = jnp.asarray(class_weights)[inputs.labels]
            examples = examples._replace(weights=examples.weights * factors[:, None])
        update = functools.partial(
            _update, classifier, optimizer, objective, average_decay,
            inputs=inputs, key=dropout_key, frozen=frozen,
        )  # fmt: skip
        if objective.replay:
            return _replay(objective.replay, update, state, examples, inputs)
        state, metrics, _ = update(state, examples)
        return state, metrics

    return jax.jit(step, donate_argnums=0)


def _update(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    average_decay: float,
    state: TrainState,
    examples: objectives.Examples,
    inputs: objectives.Batch,
    key: jax.Array,
    frozen: Variables | None,
    of: tuple[int, ...] = (0,),
) -> tuple[TrainState, Metrics, Any]:
    """Returns the state after one update, the metrics, and the gradients: of the trained
    parameters (frozen layers get none), and with `of` (0, 1) also of the images."""

    def loss_fn(params: Any, images: jax.Array) -> tuple[jax.Array, objectives.Loss]:
        variables = state._replace(params=params).variables(frozen)
        points = examples._replace(images=images)
        loss = objective.loss(classifier, variables, points, inputs, key)
        return loss.value, loss

    gradient_fn = jax.grad(loss_fn, of, has_aux=True)
    gradients, loss = gradient_fn(state.params, examples.images)
    metrics = {"loss": loss.value, **loss.metrics, "count": jnp.sum(inputs.mask)}
    own = gradients[0]
    if objective.weight_perturbation:
        # Metrics and statistics are those of the weights themselves, which are deployed.
        worst = perturb_weights(state.params, own, objective.weight_perturbation)
        (own,), _ = gradient_fn(worst, examples.images)
    state = take_step(state, optimizer, own, loss.batch_stats, average_decay)
    return state, metrics, gradients


def _replay(
    replay: objectives.Replay,
    update: Callable[..., tuple[TrainState, Metrics, Any]],
    state: TrainState,
    examples: objectives.Examples,
    inputs: objectives.Batch,
) -> tuple[TrainState, Metrics]:
    """Returns the state after several updates with one batch, and the means of their metrics."""

    def again(carry: tuple[TrainState, jax.Array], _: None) -> tuple[Any, Metrics]:
        state, points = carry
        state, metrics, gradients = update(state, examples._replace(images=points), of=(0, 1))
        return (state, replay.move(points, gradients[1], inputs.images)), metrics

    (state, _), metrics = jax.lax.scan(again, (state, examples.images), None, replay.times)
    return state, jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)
