"""Sparse autoencoders: one architecture a file, listed in `ARCHITECTURES`."""

from gsae.saes.base import SAE
from gsae.saes.baseline import BaselineSAE
from gsae.saes.gated import GatedSAE

ARCHITECTURES: dict[str, type[SAE]] = {"baseline": BaselineSAE, "gated": GatedSAE}

__all__ = ["ARCHITECTURES", "SAE", "BaselineSAE", "GatedSAE"]
