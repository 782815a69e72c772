"""BreakHis: histology of breast tumours; see builder.py."""

from medadv_jax.data.breakhis.builder import BreakHis

__all__ = ["BreakHis"]
