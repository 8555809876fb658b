"""Each claim of the paper, its rule and its verdict; the evidence page and the README."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "claims": ["CLAIMS", "Claim", "anchor", "forget"],
        "reconstruction_bias": ["healthy"],
        "verdict_tables": ["markdown", "of", "verdicts"],
    },
)
