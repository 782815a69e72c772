"""Attacks on `logits_fn(pixels)`, and the table that names them.

    attack = make_attack("pgd", epsilon=0.03, step_size=0.0075, num_steps=10)
    adversarial = attack(logits_fn, images, labels, key)

Images, radii and steps are in pixels of [0, 1]; normalisation and purifier belong inside
`logits_fn`. A first-order attack is a choice of numbers for the loop of `lanes.py`. To add one,
write a function that returns an `Attack` and name it in `ATTACKS`:

    def _fast(epsilon, step_size, num_steps, **options):
        "One step of 1.25 ε from a random point (Wong et al. 2020)."
        return Attack("fast", epsilon, 1.25 * epsilon, 1, random_start=True, **options)

    ATTACKS = {..., "fast": _fast}

It then trains and evaluates by that name, in lanes and in the attack queue. Another geometry is a
ball in `norms.py`, another objective a function in `losses.py`; each has a table of its own.

An attack with a state of its own, like APGD, is a `StepwiseAttack`: a start for one image and a
step for a batch, named in `EVALUATION_ATTACKS`. It is for evaluations, not for training.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from medadv_jax.attacks.apgd import Apgd
from medadv_jax.attacks.autoattack import AutoAttack
from medadv_jax.attacks.fab import Fab
from medadv_jax.attacks.fmn import Fmn
from medadv_jax.attacks.inputs import check_radius
from medadv_jax.attacks.losses import LOSSES
from medadv_jax.attacks.norms import BALLS
from medadv_jax.attacks.restriction import parse_restriction
from medadv_jax.attacks.run import Attack, run_assigned, run_attacks
from medadv_jax.attacks.spec import LogitsFn
from medadv_jax.attacks.square import Square

__all__ = [
    "ATTACKS",
    "EVALUATION_ATTACKS",
    "Attack",
    "LogitsFn",
    "make_attack",
    "parse_restriction",
    "run_assigned",
    "run_attacks",
]

Scalar = float | jax.Array


def _fgsm(epsilon: Scalar, step_size: Scalar | None, num_steps: int, **options: Any) -> Attack:
    """One step of ε (Goodfellow et al. 2015, section 4); step size and number are ignored."""
    del step_size, num_steps
    return Attack("fgsm", epsilon, epsilon, 1, **options)


def _bim(epsilon: Scalar, step_size: Scalar | None, num_steps: int, **options: Any) -> Attack:
    """Steps from the image itself (Kurakin et al. 2017, eq. 2)."""
    step_size = 2.5 * epsilon / num_steps if step_size is None else step_size
    return Attack("bim", epsilon, step_size, num_steps, **options)


def _pgd(epsilon: Scalar, step_size: Scalar | None, num_steps: int, **options: Any) -> Attack:
    """Steps from a random point of the ball (Madry et al. 2018, section 2.1)."""
    step_size = 2.5 * epsilon / num_steps if step_size is None else step_size
    return Attack("pgd", epsilon, step_size, num_steps, random_start=True, **options)


def _mifgsm(
    epsilon: Scalar,
    step_size: Scalar | None,
    num_steps: int,
    decay: Scalar = 1.0,
    **options: Any,
) -> Attack:
    """Steps along accumulated gradients (Dong et al. 2018, algorithm 1: step ε / T, μ = 1)."""
    step_size = epsilon / num_steps if step_size is None else step_size
    return Attack("mifgsm", epsilon, step_size, num_steps, decay=decay, **options)


def make_attack(
    name: str,
    epsilon: Scalar,
    step_size: Scalar | None = None,
    num_steps: int | None = None,
    **options: Any,
) -> Any:
    """Returns an attack by name: an `Attack`, or one of `EVALUATION_ATTACKS`.

    Args:
      name: a key of `ATTACKS` or `EVALUATION_ATTACKS`.
      epsilon: radius of the ball, in pixels of [0, 1].
      step_size: length of a step; None: 2.5 ε / num_steps (PGD, BIM) or ε / num_steps (MI-FGSM).
        FGSM ignores it: its step is ε. Others choose their steps themselves.
      num_steps: gradient steps, queries of Square; None: 10, or the published number of the
        evaluation attacks (100; Square 5,000). FGSM takes one.
      **options: further fields of the attack, such as norm, loss, targeted, num_restarts,
        keep_best, early_stop, restriction; and `decay` for MI-FGSM.

    Raises:
      ValueError: for an unknown name, norm or loss, or an impossible number.
    """
    if name in EVALUATION_ATTACKS:
        if step_size is not None:
            raise ValueError(f"step_size={step_size}: {name} chooses its steps itself")
        if num_steps is not None:
            options["num_steps"] = num_steps
        return EVALUATION_ATTACKS[name](name, epsilon, **options)
    if name not in ATTACKS:
        known = ", ".join(sorted({*ATTACKS, *EVALUATION_ATTACKS}))
        raise ValueError(f"unknown attack {name!r}: known are {known}")
    for field, known in (("norm", BALLS), ("loss", LOSSES)):
        if field in options and options[field] not in known:
            raise ValueError(f"{field}={options[field]!r}: known are {', '.join(sorted(known))}")
    check_radius(name, epsilon, options.get("norm", "linf"))  # before steps are derived from it
    return ATTACKS[name](epsilon, step_size, 10 if num_steps is None else num_steps, **options)


# First-order attacks, for training and evaluation.
ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "bim": _bim,
    "mifgsm": _mifgsm,
}

# (name, epsilon, **fields) -> an attack for evaluations.
EVALUATION_ATTACKS: dict[str, Callable[..., Any]] = {
    "apgd": Apgd,
    "apgd_t": functools.partial(Apgd, loss="dlr", num_targets=9),
    "fab": Fab,
    "fmn": Fmn,
    "square": Square,
    "autoattack": AutoAttack,
}
