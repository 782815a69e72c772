"""The chest X-rays with all four networks, small enough for two CPU cores.

    python scripts/sweep.py --grid=xrays --config.data.dir=FOLDER

VGGs have no BatchNorm: from fresh weights they stay at chance at the other networks' learning rate
(measured: VGG16, two epochs at 0.001, loss 0.69). InceptionV3, trained against attacks of three
steps as the others are, has an accuracy of 0.65 under these and of 0.07 under ten steps; trained
against seven steps of PGD, 0.46 and 0.21.
"""

from medadv_jax.experiment.sweep.grids import Grid


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
            "model.weights": "none",
            "train.epochs": 8,
            "purifier.epochs": 2,
            "purifier.joint_epochs": 1,
            "eval.check_images": 16,
            "detector.run": False,
        },
        special={
            "*_inception": {
                "data.image_size": 80,  # it takes 75 pixels and more
                "train.attacks": "pgd",
                "train.num_steps": 7,
            },
            "*_vgg*": {"train.learning_rate": 0.0003},
        },
    )
