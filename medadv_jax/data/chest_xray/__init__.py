"""The chest X-ray data set: children, normal or with pneumonia."""

from medadv_jax.data.chest_xray.builder import ChestXray

__all__ = ["ChestXray"]
