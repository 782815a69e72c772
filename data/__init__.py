"""The data sets, as TFDS builders that need no TensorFlow; see README.md for their protocols."""

from data.breakhis import BreakHis
from data.cache import CachedBuilder
from data.chest_xray import ChestXray
from data.drawn import Phantoms

DATASETS: dict[str, type[CachedBuilder]] = {
    "breakhis": BreakHis,
    "chest_xray": ChestXray,
    "phantoms": Phantoms,
}
