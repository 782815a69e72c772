"""BreakHis: histology of breast tumours; see builder.py."""

from data.breakhis.builder import BreakHis

__all__ = ["BreakHis"]
