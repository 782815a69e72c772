"""Objectives of adversarial training on the chest X-rays, and what each costs, on two CPU cores.

    python scripts/sweep.py --grid=objectives --config.data.dir=FOLDER

ResNet50 at width 0.5 from fresh weights, 64 pixels, split by patient. All rows have the same
validation and test images, the same validation attack, by which their checkpoints are chosen, and
the same attacks on the test images.
The report has accuracy under the worst attack against the seconds and gradient passes of training.
It has not been run to its end yet.
"""

from medadv_jax.experiment.sweep.grids import Grid

_PGD = {"train.attacks": "pgd"}
_TRADES = {"train.objective": "trades"}
_EMA = {"train.ema": 0.995}
_AWP = {"train.weight_perturbation": 0.005}
# Two gradient passes for each image instead of four and more: more epochs in the same time.
_CHEAP = {"train.objective": "madry", "train.epochs": 16}
# AutoAttack with fewer steps and queries than the standard's 100 and 5,000, for two CPU cores.
_ATTACKS = {
    "eval.attacks": "fgsm,pgd,bim,mifgsm,autoattack",
    "eval.apgd_steps": 50,
    "eval.queries": 300,
    "eval.checks": False,
}

XRAYS = {
    "data.image_size": 64,
    "model.width": 0.5,
    "model.weights": "none",
    "train.epochs": 8,
    "detector.run": False,
    **_ATTACKS,
}


def get_grid() -> Grid:
    """Returns the grid: 12 cells."""
    return Grid(
        configs=("configs/pneumonia_resnet.py",),
        fields=XRAYS | {"defenses": "base,adversarial"},
        rows={
            "mixed": {},
            "trades_awp_ema": _TRADES | _AWP | _EMA,
            "all_images": {
                "data.train_all": True,
                "train.sampling": "balanced",
                "train.epochs": 6,
            },
            "madry": {"train.objective": "madry", **_PGD},
            "trades": _TRADES,
            "dual_norm": {"train.dual_norm": "attacked"},
            "fast": _CHEAP | {"train.method": "fast"},
            "trades_ema": _TRADES | _EMA,
            "mart": {"train.objective": "mart", "train.beta": 5.0, **_PGD},
            "smoothing": {"train.label_smoothing": 0.1},
            "noise": _CHEAP | {"train.method": "noise"},
            "free": {"train.objective": "madry", "train.method": "free"},
        },
    )
