"""The architectures, one class a file; saved, loaded, exchanged; the small worlds of Fig. 2 and
Appendices E, F.
"""

from gsae.saes.base import SAE
from gsae.saes.baseline import BaselineSAE
from gsae.saes.gated import GatedSAE

ARCHITECTURES: dict[str, type[SAE]] = {"baseline": BaselineSAE, "gated": GatedSAE}

__all__ = ["ARCHITECTURES", "SAE", "BaselineSAE", "GatedSAE"]
