"""One loop that trains a stack of SAEs on one stream: schedule, gradients, Adam, resampling,
rescale & shift.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loop": ["fit", "train"],
        "divergence": ["Diverged"],
        "schedule": ["Plan"],
        "stack": ["Stack"],
    },
)
