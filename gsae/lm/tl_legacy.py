"""Language models in TransformerLens' old format, which GELU-1L's repository has, at any revision.

TransformerLens' own loader of these asks the network even for cached files, and reads the newest
revision only.
"""

import json
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import tl_legacy
from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint
from transformers import PreTrainedTokenizerBase

PREFIXES = tl_legacy.TL_LEGACY_PREFIXES
SAME = (  # fields that have kept their names
    "d_model",
    "n_layers",
    "d_mlp",
    "d_head",
    "n_heads",
    "n_ctx",
    "d_vocab",
    "act_fn",
    "attn_only",
)


def config(source: str, revision: str | None = None) -> TransformerBridgeConfig:
    """The configuration of a repository. Raises ValueError on positions other than learned ones."""
    path = hf_hub_download(source, "config.json", revision=revision)
    given = json.loads(Path(path).read_text())
    if given.get("shortformer_pos"):
        raise ValueError(
            f"{source} adds its positions inside attention (shortformer), which cannot be loaded "
            "here"
        )
    return TransformerBridgeConfig(
        **{key: given[key] for key in SAME},
        final_rms=given.get("final_rms", False),
        normalization_type=given.get("normalization", given.get("normalization_type")),
        positional_embedding_type="standard",
        tokenizer_name=given.get("tokenizer_name"),
        architecture="TransformerLensNative",
    )


def boot(source: str, revision: str | None, words: PreTrainedTokenizerBase) -> TransformerBridge:
    """The model with its final weights. Raises OSError where they cannot be had."""
    wanted = ["config.json", "*final.pth"]
    folder = Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    weights = sorted(folder.glob("*final.pth"))
    if not weights:
        raise FileNotFoundError(f"{source} holds no file *final.pth")
    cfg = config(source, revision)
    bridge = TransformerBridge.boot_native(cfg, tokenizer=words)
    # The published file is a pickle; weights_only reads tensors and runs nothing.
    published = torch.load(weights[0], map_location="cpu", weights_only=True)
    state = convert_tl_checkpoint(published, cfg)
    # where none was published there is none, but the strict load wants its zeros
    state.setdefault("unembed.bias", torch.zeros(cfg.d_vocab))
    bridge.load_state_dict(state, strict=True)
    return bridge
