"""The data sets by name: TFDS builders that need no TensorFlow. Protocol: data/README.md."""

from medadv_jax.data.breakhis import BreakHis
from medadv_jax.data.cache import CachedBuilder
from medadv_jax.data.chest_xray import ChestXray
from medadv_jax.data.chest_xray14 import ChestXray14
from medadv_jax.data.folder import ImageFolder
from medadv_jax.data.phantoms.builder import Phantoms

DATASETS: dict[str, type[CachedBuilder]] = {
    "breakhis": BreakHis,
    "chest_xray": ChestXray,
    "chest_xray14": ChestXray14,
    "folder": ImageFolder,
    "phantoms": Phantoms,
}
