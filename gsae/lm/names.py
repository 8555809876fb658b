"""Names: of language models, where each comes from, and of the sites whose activations are read."""

from typing import NamedTuple

HOOKS = {  # the paper's sites (section 4.1) -> TransformerLens' names
    "mlp_out": "hook_mlp_out",
    "attn_z": "attn.hook_z",  # before W_O; heads are flattened here
    "resid_post": "hook_resid_post",
    "mlp_neurons": "mlp.hook_post",
}
SITES = tuple(HOOKS)


class Spec(NamedTuple):
    """Where a language model comes from, and the blocks it is read on."""

    source: str  # a Hugging Face repository, or "" for a packaged model
    context: int = 128  # tokens in a block
    # commit, tag or branch, unless the name says "name@revision"; None: the newest
    revision: str | None = None


MINI = "gelu-1l-mini"  # shipped with the package
NAMES = {  # the hub models and their contexts are the paper's, the other two are not (D11)
    "smollm2": Spec(""),
    MINI: Spec(""),
    "gelu-1l": Spec(
        "NeelNanda/GELU_1L512W_C4_Code", 128, "bddc0e332f0ae84279e6a6a45d91b314899e1603"
    ),
    "pythia-2.8b": Spec("EleutherAI/pythia-2.8b", 2048, "2a259cdd96a4beb1cdf467512e3904197345f6a9"),
    "gemma-7b": Spec("google/gemma-7b", 1024, "ff6768d9368919a1f025a54f9f5aa0ee591730bb"),
}
TOKENIZERS = {  # tokenizers in repositories of their own -> their pinned revisions
    "NeelNanda/gpt-neox-tokenizer-digits": "0f6671571a20be9756b9991d978047c03b75e749",  # gelu-1l's
}


def hook(site: str, layer: int) -> str:
    """TransformerLens' name of a site. Raises ValueError on a site that is none of `SITES`."""
    if site not in HOOKS:
        raise ValueError(f"unknown site {site!r}: expected one of {', '.join(SITES)}")
    return f"blocks.{layer}.{HOOKS[site]}"
