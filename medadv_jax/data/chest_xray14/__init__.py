"""ChestX-ray14 (NIH): chest X-rays with any number of 14 findings."""

from medadv_jax.data.chest_xray14.builder import FINDINGS, ChestXray14

__all__ = ["FINDINGS", "ChestXray14"]
