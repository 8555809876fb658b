"""A table in, a figure out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["histogram", "lines", "pareto", "shrinkage"],
    },
)
