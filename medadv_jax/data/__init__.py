"""The data sets, as TFDS builders that need no TensorFlow; see README.md for their protocols."""

from medadv_jax.data.breakhis import BreakHis
from medadv_jax.data.cache import CachedBuilder
from medadv_jax.data.chest_xray import ChestXray
from medadv_jax.data.phantoms.builder import Phantoms

DATASETS: dict[str, type[CachedBuilder]] = {
    "breakhis": BreakHis,
    "chest_xray": ChestXray,
    "phantoms": Phantoms,
}
