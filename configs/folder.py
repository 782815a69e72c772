"""Your own images, ResNet50 from fresh weights: a folder, a table, or DICOM files.

    python main.py --config=configs/folder.py --workdir=runs/x --config.data.dir=FOLDER

FOLDER/<class>/… or FOLDER/{train,val,test}/<class>/…; two or more classes. Give the patients by
--config.data.group_pattern, a regular expression on the file names, or by --config.data.csv.
Without them images of one patient may be in training and in test. docs/data.md has all of it.

As it stands (224 px, full width) it is meant for a GPU and has not been run there yet. On two CPU
cores add --config.data.image_size=64 --config.model.width=0.5.
"""

from configs import default
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = default.get_config()
    config.data.name = "folder"
    config.data.per_class = 0  # all images, unbalanced as they come
    config.train.batch_size = 16  # own data are often few
    config.train.schedule = "cosine"
    config.train.num_steps = 3  # fewer than the default, to save time
    default.set_guided_purifier(config)
    return config
