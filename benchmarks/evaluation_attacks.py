"""The evaluation attacks of torchattacks, Foolbox and ART, called with one budget.

Each function takes a PyTorch network (N, C, H, W) in [0, 1] -> (N, K) in eval mode, and a `Budget`.
It returns images -> adversarial images, both (N, C, H, W) tensors; None if the library lacks it.
"""

# pyright: reportMissingImports=false, reportInvalidTypeForm=false
# No dependencies of this project; `make peers` installs them.

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

Tensor = torch.Tensor
Run = Callable[[Tensor, Tensor], Tensor]  # (images, labels (N,) int64) -> adversarial images


class Budget(NamedTuple):
    """What every implementation of an attack may spend.

    Attributes:
      norm: "linf" or "l2".
      epsilon: radius, in pixels of [0, 1].
      classes: K.
      num_steps: of attacks with gradients.
      queries: of Square.
    """

    norm: str
    epsilon: float
    classes: int
    num_steps: int = 100
    queries: int = 5000


def _torchattacks(network: Any, name: str, budget: Budget) -> Run | None:
    import torchattacks

    common: dict[str, Any] = {"norm": {"linf": "Linf", "l2": "L2"}[budget.norm]}
    common |= {"eps": budget.epsilon, "n_restarts": 1, "seed": 0}
    steps, classes = common | {"steps": budget.num_steps}, {"n_classes": budget.classes}
    makers: dict[str, Callable[[], Any]] = {
        "apgd_ce": lambda: torchattacks.APGD(network, loss="ce", **steps),
        "apgd_dlr": lambda: torchattacks.APGD(network, loss="dlr", **steps),
        "apgd_t": lambda: torchattacks.APGDT(network, **steps, **classes),
        "fab": lambda: torchattacks.FAB(network, **steps, **classes),
        "fab_t": lambda: torchattacks.FAB(network, **steps, **classes, multi_targeted=True),
        "square": lambda: torchattacks.Square(network, n_queries=budget.queries, **common),
    }
    if name == "autoattack":
        parts = [makers[part]() for part in ("apgd_ce", "apgd_t", "fab_t", "square")]
        return torchattacks.MultiAttack(parts)
    return makers[name]() if name in makers else None


def margin_apgd(network: Any, budget: Budget) -> Run:
    """Returns torchattacks' APGD with the margin in place of DLR, which two classes lack."""
    attack: Any = _torchattacks(network, "apgd_dlr", budget)

    def margin(logits: Tensor, labels: Tensor) -> Tensor:
        own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        return logits.masked_fill(own, -torch.inf).max(dim=1)[0] - logits[own]

    attack.dlr_loss = margin
    return attack


def _foolbox(network: Any, name: str, budget: Budget) -> Run | None:
    import foolbox

    if name != "fmn":
        return None
    kinds = {"linf": foolbox.attacks.LInfFMNAttack, "l2": foolbox.attacks.L2FMNAttack}
    attack = kinds[budget.norm](steps=budget.num_steps)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    # The smallest perturbation is taken as it is: Foolbox would shorten one beyond ε.
    return lambda images, labels: attack(model, images, labels, epsilons=None)[0]


def _art(network: Any, name: str, budget: Budget) -> Run | None:
    from art.attacks import evasion

    losses = {"apgd_ce": "cross_entropy", "apgd_dlr": "difference_logits_ratio"}
    if name not in (*losses, "square"):
        return None
    norm: Any = {"linf": np.inf, "l2": 2}[budget.norm]
    common = {"norm": norm, "eps": budget.epsilon, "batch_size": 128, "verbose": False}

    def run(images: Tensor, labels: Tensor) -> Tensor:
        estimator = art_classifier(network, tuple(images.shape[1:]), budget.classes)
        if name == "square":
            attack: Any = evasion.SquareAttack(estimator, max_iter=budget.queries, **common)
        else:
            attack = evasion.AutoProjectedGradientDescent(
                estimator, eps_step=2 * budget.epsilon, max_iter=budget.num_steps,
                nb_random_init=1, loss_type=losses[name], **common,
            )  # fmt: skip
        return torch.tensor(attack.generate(x=images.numpy(), y=labels.numpy()))

    return run


def art_classifier(network: Any, shape: tuple[int, ...], classes: int) -> Any:
    """Returns the network as an estimator of ART, for images of `shape` (C, H, W)."""
    from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)
    return PyTorchClassifier(
        model=network, loss=torch.nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes,
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip


MAKERS: dict[str, Callable[[Any, str, Budget], Run | None]] = {
    "torchattacks": _torchattacks,
    "art": _art,
    "foolbox": _foolbox,
}
