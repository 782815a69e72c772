"""Everything, small: both kinds of generated images, four narrow networks, four defences each.

python scripts/sweep.py --grid=smoke
"""

from medadv_jax.experiment.sweep.grids import CONFIGS, Grid


def get_grid() -> Grid:
    """Returns the grid: 8 cells, those of the two data sets of the paper, on generated images."""
    return Grid(
        configs=CONFIGS,
        fields={
            "data.name": "phantoms",
            "data.phantom_kind": "xray",
            "data.phantom_images": 240,
            "data.per_class": 100,
            "data.image_size": 32,
            "model.width": 0.125,
            "model.weights": "none",
            "train.epochs": 6,
            "train.batch_size": 16,
            "train.num_steps": 2,
            "purifier.width": 0.25,
            "purifier.epochs": 2,
            "purifier.joint_epochs": 1,
            "eval.num_steps": 3,
            "eval.check_images": 8,
            "detector.run": False,
            "model.conv_impl": "plain",
        },
        special={
            "breakhis_*": {"data.phantom_kind": "histology"},
            "*_inception": {"data.image_size": 75},  # it takes no less
            "*_vgg*": {"train.learning_rate": 0.0003},
        },
    )
