"""The chest X-rays with all four networks, small enough for two CPU cores.

python scripts/sweep.py --grid=xrays --config.data.dir=FOLDER
"""

from medadv_jax.sweep.grids import Grid


def get_grid() -> Grid:
    """Returns the grid: 4 cells."""
    return Grid(
        configs=(
            "configs/pneumonia_resnet.py",
            "configs/pneumonia_inception.py",
            "configs/pneumonia_vgg16.py",
            "configs/pneumonia_vgg19.py",
        ),
        fields={
            "data.image_size": 64,
            "data.per_class": 500,
            "model.width": 0.5,
            "train.epochs": 5,
            "purifier.epochs": 2,
            "purifier.joint_epochs": 1,
            "eval.check_images": 32,
            "detector.run": False,
        },
        special={"*_inception": {"data.image_size": 80}},  # it takes 75 pixels and more
    )
