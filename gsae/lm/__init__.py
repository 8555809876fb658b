"""Language models, their text, their activations, and cross-entropy with a site replaced."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "models": ["LM", "ModelError", "load", "tokenizer"],
        "names": ["SITES"],
    },
)
