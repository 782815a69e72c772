"""torchattacks, Foolbox and ART, called as in their documentation, on the same network.

The network is in eval mode; its parameters require gradients, since none of the three freezes them.
"""

# pyright: reportMissingImports=false
# No dependencies of this project; `make peers` installs them.

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cases import DECAY, EPSILON, RELATIVE_STEP, Case, Job
from benchmarks.pytorch import Network, device_name, memory_peak, synchronize, to_pixels

Run = Callable[[], Any]  # -> adversarial images (B, 3, H, W), a tensor or an array


def step_size(case: Case) -> float:
    """Returns our step size."""
    return EPSILON / case.num_steps * (1 if case.attack == "mifgsm" else RELATIVE_STEP)


class Library:
    """One library's attacks on one network.

    Args of the constructor: a name of `MAKERS`; the network; images (B, H, W, 3) uint8; labels.
    """

    def __init__(self, name: str, net: Network, images: np.ndarray, labels: np.ndarray):
        self.implementation = name
        self._net = copy.deepcopy(net).eval()
        self._images, self._labels = images, labels

    def job(self, case: Case) -> Job | None:
        """Returns the job of a case; None if the library lacks it."""
        run = self._make(case, random_start=True)
        if run is None:
            return None
        return Job(case, self.implementation, run, synchronize, "", memory_peak)

    def adversarial(self, case: Case) -> np.ndarray | None:
        """Returns adversarial images (B, H, W, 3), without random start; None if it lacks them."""
        run = self._make(case, random_start=False)
        if run is None:
            return None
        x = run()
        x = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        return x.transpose(0, 2, 3, 1)

    def _make(self, case: Case, random_start: bool) -> Run | None:
        if case.task != "attack":
            return None
        maker = MAKERS[self.implementation]
        return maker(self._net, self._images, self._labels, case, random_start)


def _torchattacks(
    net: Network, images: np.ndarray, labels: np.ndarray, case: Case, random_start: bool
) -> Run | None:
    import torchattacks

    steps = {"eps": EPSILON, "alpha": step_size(case), "steps": case.num_steps}
    makers = {
        "fgsm": lambda: torchattacks.FGSM(net, eps=EPSILON),
        "bim": lambda: torchattacks.BIM(net, **steps),
        "pgd": lambda: torchattacks.PGD(net, **steps, random_start=random_start),
        "mifgsm": lambda: torchattacks.MIFGSM(net, **steps, decay=DECAY),
    }
    attack = makers[case.attack or ""]()
    pixels, targets = to_pixels(images), torch.tensor(labels).long().to(device_name())
    return lambda: attack(pixels, targets)


def _foolbox(
    net: Network, images: np.ndarray, labels: np.ndarray, case: Case, random_start: bool
) -> Run | None:
    import foolbox

    steps = {"abs_stepsize": step_size(case), "steps": case.num_steps}
    makers = {
        "fgsm": lambda: foolbox.attacks.LinfFastGradientAttack(),
        "bim": lambda: foolbox.attacks.LinfBasicIterativeAttack(**steps, random_start=False),
        "pgd": lambda: foolbox.attacks.LinfProjectedGradientDescentAttack(
            **steps, random_start=random_start
        ),
    }
    if case.attack not in makers:
        return None
    attack = makers[case.attack]()
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device=device_name())
    pixels, targets = to_pixels(images), torch.tensor(labels).long().to(device_name())
    return lambda: attack(model, pixels, targets, epsilons=EPSILON)[1]


def _art(
    net: Network, images: np.ndarray, labels: np.ndarray, case: Case, random_start: bool
) -> Run | None:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)
    estimator = PyTorchClassifier(
        model=net,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(3, case.image_size, case.image_size),
        nb_classes=int(labels.max()) + 1,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device_name() == "cuda" else "cpu",
    )
    loop = {"eps": EPSILON, "eps_step": step_size(case), "max_iter": case.num_steps}
    loop |= {"batch_size": case.batch, "verbose": False}
    makers = {
        "fgsm": lambda: evasion.FastGradientMethod(estimator, eps=EPSILON, batch_size=case.batch),
        "bim": lambda: evasion.BasicIterativeMethod(estimator, **loop),
        "pgd": lambda: evasion.ProjectedGradientDescent(
            estimator, **loop, num_random_init=int(random_start)
        ),
        "mifgsm": lambda: evasion.MomentumIterativeMethod(estimator, **loop, decay=DECAY),
    }
    attack = makers[case.attack or ""]()
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255
    return lambda: attack.generate(x=pixels, y=labels)


MAKERS: dict[str, Callable[..., Run | None]] = {
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "art": _art,
}
