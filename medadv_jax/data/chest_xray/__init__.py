"""Chest X-rays of children, normal and with pneumonia; see builder.py."""

from medadv_jax.data.chest_xray.builder import ChestXray

__all__ = ["ChestXray"]
