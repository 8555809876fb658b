"""A table in, a figure out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "arms": [
            "encoder_gap",
            "forest",
            "known_dictionary",
            "pursuits",
            "series_fronts",
            "series_gammas",
        ],
        "base": ["histogram", "lines", "pareto", "shrinkage"],
        "sites": ["site_errors", "site_fronts", "site_gammas"],
        "sweeps": ["curves", "density", "lambda_map"],
    },
)
