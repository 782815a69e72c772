"""The optimizer of a stage, and the running average of the weights; both are optax's."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

OPTIMIZERS = ("adam", "adamw", "sgd")


class OptimizerOptions(NamedTuple):
    """What an optimizer has beside its learning rate; the defaults are plain Adam.

    Attributes:
      name: "adam" (Kingma & Ba 2015), "adamw" (Loshchilov & Hutter 2019), or "sgd" with momentum.
      weight_decay: of kernels only, not of biases and norm scales. adamw multiplies it by the
        learning rate; sgd adds decay · kernel to the gradient. adam has none.
      momentum: of sgd.
      clip_norm: the largest norm of all gradients together; 0: no limit.
      warmup_epochs: epochs in which the learning rate rises linearly to its value.
    """

    name: str = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.9
    clip_norm: float = 0.0
    warmup_epochs: float = 0.0


def make_optimizer(
    learning_rate: float,
    schedule: str,
    total_steps: int,
    options: OptimizerOptions | None = None,
    epoch_steps: int = 1,
) -> optax.GradientTransformation:
    """Returns the optimizer of a stage.

    Args:
      learning_rate: its largest value.
      schedule: "constant", or "cosine": to 0 at `total_steps`.
      total_steps: steps of the stage.
      options: see the class; None: plain Adam.
      epoch_steps: steps of an epoch, for the warm-up.
    """
    options = options or OptimizerOptions()
    rate = _learning_rate(learning_rate, schedule, total_steps, options.warmup_epochs * epoch_steps)
    if options.name == "adam":
        optimizer = optax.adam(rate)
    elif options.name == "adamw":
        optimizer = optax.adamw(rate, weight_decay=options.weight_decay, mask=_kernels)
    else:
        decay = optax.add_decayed_weights(options.weight_decay, _kernels)
        optimizer = optax.chain(decay, optax.sgd(rate, options.momentum))
    if options.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(options.clip_norm), optimizer)
    return optimizer


def _learning_rate(
    value: float, schedule: str, total_steps: int, warmup_steps: float
) -> optax.ScalarOrSchedule:
    """Returns the learning rate; step i of n warm-up steps, from 1, has i / n of the value."""
    steps = max(round(warmup_steps), 1) if warmup_steps else 0
    rate = value
    if schedule == "cosine":
        rate = optax.cosine_decay_schedule(value, max(total_steps - steps, 1))
    if not steps:
        return rate
    after = rate if callable(rate) else optax.constant_schedule(rate)
    rise = optax.linear_schedule(value / steps, value, steps - 1)
    return optax.join_schedules([rise, after], [steps])


def _kernels(params: Any) -> Any:
    """Returns True for each kernel, False for biases and for the scales of norms."""
    return jax.tree.map(lambda array: array.ndim > 1, params)


def running_average(average: Any, new: Any, decay: float, count: jax.Array) -> Any:
    """Returns the exponential moving average of arrays after `count` values, `new` the last.

    Value i of n weighs decay^(n - i), and the weights sum to 1: what was there before the first
    value does not count (the bias correction of Kingma & Ba 2015, section 3).
    """
    share = (1 - decay) / -jnp.expm1(count * math.log(decay))
    # Of a difference: arrays that never change stay as they are, to the bit.
    return optax.tree.add_scale(average, share, optax.tree.sub(new, average))
