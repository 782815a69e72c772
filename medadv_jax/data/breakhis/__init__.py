"""The BreakHis data set: histology of breast tumours."""

from medadv_jax.data.breakhis.builder import BreakHis

__all__ = ["BreakHis"]
