"""All contact with a language model: load one, read a site's activations, measure the cross-entropy with a
site replaced. Everything runs through TransformerLens' `TransformerBridge`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import tl_legacy
from transformer_lens.tools.model_registry.registry_io import resolve_model_alias
from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

HOOKS = {  # the paper's sites (section 4.1) -> TransformerLens' names
    "mlp_out": "hook_mlp_out",
    "attn_z": "attn.hook_z",  # before W_O; heads are flattened here
    "resid_post": "hook_resid_post",
    "mlp_neurons": "mlp.hook_post",
}
SITES = tuple(HOOKS)
RESID_PRE = "hook_resid_pre"


@dataclass(frozen=True)
class Spec:
    """Where a language model comes from, and the length of the blocks it is read on (tokens)."""

    source: str  # "packaged" or a Hugging Face repository
    context: int = 128


NAMES = {  # contexts of the hub models: section 3.1 of the paper's setup
    "smollm2": Spec("packaged"),
    "gelu-1l-mini": Spec("packaged"),
    "gelu-1l": Spec("NeelNanda/GELU_1L512W_C4_Code"),
    "pythia-2.8b": Spec("EleutherAI/pythia-2.8b", 2048),
    "gemma-7b": Spec("google/gemma-7b", 1024),
}


class ModelError(RuntimeError):
    """A language model cannot be had; the message says which one and what to do."""


class _Enough(Exception):
    """Raised inside a forward pass once every wanted activation has been read."""


def hook(site: str, layer: int) -> str:
    """TransformerLens' name of a site. Raises ValueError on a site that is none of `SITES`."""
    if site not in HOOKS:
        raise ValueError(f"unknown site {site!r}: expected one of {', '.join(SITES)}")
    return f"blocks.{layer}.{HOOKS[site]}"


class LM:
    """A language model with named sites. Attributes: `name, bridge, tokenizer, device, dtype, n_layers, context`."""

    def __init__(self, bridge: TransformerBridge, name: str, context: int | None = None, tokenizer=None):
        self.bridge, self.name = bridge, name
        self.tokenizer = tokenizer if tokenizer is not None else bridge.tokenizer
        parameter = next(bridge.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.n_layers = len(bridge.blocks)
        self.context = context or min(bridge.cfg.n_ctx, 1024)
        config = getattr(bridge.original_model, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False  # a key-value cache is of no use here and costs memory
        bridge.eval().requires_grad_(False)

    def d(self, site: str) -> int:
        """Width n of a site's activations."""
        hook(site, 0)
        cfg = self.bridge.cfg
        return {"attn_z": cfg.n_heads * cfg.d_head, "mlp_neurons": cfg.d_mlp}.get(site, cfg.d_model)

    def _check(self, tokens: Tensor, sites: Sequence[tuple[str, int]]) -> Tensor:
        for site, layer in sites:
            hook(site, layer)
            if not 0 <= layer < self.n_layers:
                raise ValueError(f"{self.name} has no layer {layer}: expected 0 to {self.n_layers - 1}")
        if tokens.shape[-1] > self.bridge.cfg.n_ctx:
            raise ValueError(
                f"{self.name} reads at most {self.bridge.cfg.n_ctx} tokens, got {tokens.shape[-1]}"
            )
        return tokens.to(self.device, torch.long)

    @torch.no_grad()
    def activations(
        self, tokens: Int[Tensor, "B T"], sites: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], Float[Tensor, "B T _"]]:
        """Activations at several (site, layer) in one forward pass, which ends as soon as the last one is read.

        Position 0 is included. The tensors keep the model's dtype and device.
        Raises ValueError on an unknown site or layer, or on blocks longer than the model's context.
        """
        tokens, found = self._check(tokens, sites), {}

        def reader(key):
            def read(value, hook):
                found[key] = value.flatten(2)
                if len(found) == len(set(sites)):
                    raise _Enough

            return read

        try:
            with self.bridge.hooks(fwd_hooks=[(hook(*key), reader(key)) for key in dict.fromkeys(sites)]):
                self.bridge(tokens, return_type="logits")
        except _Enough:
            pass
        if missing := set(sites) - set(found):
            raise ModelError(f"{self.name} has no activations at {', '.join(f'{s} {i}' for s, i in missing)}")
        return found

    def splice(
        self, tokens: Int[Tensor, "B T"], site: str, layer: int, *, keep_pos0: bool = False
    ) -> "Splice":
        """Run the clean forward pass once, ready to replace one site's activations: see `Splice`."""
        return Splice(self, self._check(tokens, [(site, layer)]), site, layer, keep_pos0)


class Splice:
    """Cross-entropy of a batch of blocks with one site's activations replaced (the CE terms of Eq. 5).

    `clean`: (B, T, n), the activations of the clean pass; `targets`: predictions counted in each block.
    Position 0 keeps its clean activation and targets count from position 2 on, the first that a replacement
    can reach. With `keep_pos0` position 0 is replaced like any other, and targets count from position 1 on.
    """

    @torch.no_grad()
    def __init__(self, lm: LM, tokens: Int[Tensor, "B T"], site: str, layer: int, keep_pos0: bool = False):
        self.lm, self.tokens, self.hook = lm, tokens, hook(site, layer)
        self.first = 0 if keep_pos0 else 1  # the first position whose activation is replaced
        self.targets = tokens.shape[1] - 1 - self.first
        # Layers below the site give the same result in every pass: only those from `start` on run again.
        self.start = layer + (site == "resid_post")
        lower = lm.bridge.blocks[: self.start]
        seen: dict[str, Tensor] = {}
        hooks = [(self.hook, lambda value, hook: seen.update(clean=value))]
        if site != "resid_post":
            hooks.append((f"blocks.{layer}.{RESID_PRE}", lambda value, hook: seen.update(resid_pre=value)))
        with lm.bridge.hooks(fwd_hooks=hooks), _outputs(lower) as self._kinds:
            self._clean = self._loss(lm.bridge(tokens, return_type="logits"))
        self._shape, self._resid_pre = seen["clean"].shape, seen.get("resid_pre")
        self.clean = seen["clean"].flatten(2)

    def _loss(self, logits: Float[Tensor, "B T V"]) -> Float[Tensor, " B"]:
        """Summed nats of each block, in fp32, one block at a time: fp32 logits of a whole batch would not fit."""
        blocks = zip(logits[:, self.first : -1], self.tokens[:, self.first + 1 :], strict=True)
        return torch.stack([F.cross_entropy(row.float(), target, reduction="sum") for row, target in blocks])

    @torch.no_grad()
    def ce(self, replacement: Float[Tensor, "B T n"] | None = None) -> Float[Tensor, " B"]:
        """Cross-entropy in nats, summed over the counted targets of each block; None: the clean pass.

        Zero ablation is `ce(torch.zeros_like(splice.clean))`, the zeta of Eq. 5.
        Raises ValueError if the replacement's shape is not that of `clean`.
        """
        if replacement is None:
            return self._clean
        if replacement.shape != self.clean.shape:
            shapes = f"{tuple(replacement.shape)}, expected {tuple(self.clean.shape)}"
            raise ValueError(
                f"a replacement has shape {shapes}: give one vector for each token of the blocks"
            )
        new = replacement.to(self.clean).clone()
        new[:, : self.first] = self.clean[:, : self.first]
        new = new.view(self._shape)
        hooks = [(self.hook, lambda value, hook: new)]
        if self._resid_pre is not None:
            hooks.append((f"blocks.{self.start}.{RESID_PRE}", lambda value, hook: self._resid_pre))
        with (
            _skipped(self.lm.bridge.blocks[: self.start], self._kinds),
            self.lm.bridge.hooks(fwd_hooks=hooks),
        ):
            return self._loss(self.lm.bridge(self.tokens, return_type="logits"))


@contextmanager
def _outputs(blocks) -> Iterator[list[bool]]:
    """What the blocks return during a pass: True for a tuple, False for a bare tensor (architectures differ)."""
    kinds: list[bool] = []
    handles = [
        block.original_component.register_forward_hook(lambda m, i, out: kinds.append(isinstance(out, tuple)))
        for block in blocks
    ]
    try:
        yield kinds
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _skipped(blocks, kinds: Sequence[bool]) -> Iterator[None]:
    """Blocks that return their input. (The bridge's own `start_at_layer` still computes the layers below.)"""

    def identity(wrap):
        def forward(hidden_states, *args, **kwargs):
            return (hidden_states,) if wrap else hidden_states

        return forward

    try:
        for block, kind in zip(blocks, kinds, strict=True):
            block.original_component.forward = identity(kind)
        yield
    finally:
        for block in blocks:
            block.original_component.__dict__.pop("forward", None)


def load(name: str, device: str = "auto", dtype: torch.dtype | str | None = None) -> LM:
    """Load a language model by name: one of `NAMES`, a Hugging Face repository or a folder.

    `device`: "auto" is cuda if there is one, else cpu. `dtype`: None is float32 for gelu-1l-mini; for the others
    bfloat16 where the processor computes in it (a SmolLM2 pass takes half the time), else float32.
    Raises ModelError with the name and the remedy if the model cannot be had.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if dtype is None:
        fast = device.startswith("cuda") or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        dtype = torch.bfloat16 if fast and name != "gelu-1l-mini" else torch.float32
    context = NAMES[name].context if name in NAMES else None
    if name == "gelu-1l-mini":
        from gsae import assets, mini

        bridge = mini.load_bridge(assets.data_path(name)).to(device, dtype)
        return LM(bridge, name, context)
    if name == "smollm2":
        from gsae import assets

        return LM(_from_folder(str(assets.smollm2()), device, dtype), name, context)
    source = NAMES[name].source if name in NAMES else resolve_model_alias(name) or name
    try:
        boot = _from_legacy if source.startswith(tl_legacy.TL_LEGACY_PREFIXES) else _from_folder
        return LM(boot(source, device, dtype), name, context)
    except (OSError, httpx.HTTPError) as error:
        raise ModelError(
            f"cannot load the language model {name!r} ({source}): {error}\n"
            f"It comes from https://huggingface.co/{source}: check the name and the network. A gated model (Gemma) "
            "needs its licence accepted on that page and a token (`hf auth login`, or HF_TOKEN). Without the hub, "
            "'smollm2' and 'gelu-1l-mini' come with the package."
        ) from error


def _from_folder(source: str, device: str, dtype: torch.dtype) -> TransformerBridge:
    """A model in transformers' format, from a folder or from the hub."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="eager").to(device)
    return TransformerBridge.boot_transformers(
        source, hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype
    )


def _from_legacy(source: str, device: str, dtype: torch.dtype) -> TransformerBridge:
    """A model in TransformerLens' old format. As `tl_legacy.boot`, which wants the network even for cached files."""
    folder = Path(snapshot_download(source, allow_patterns=["config.json", "*final.pth"]))
    config = tl_legacy.derive_tl_legacy_config(source)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name)
    bridge = TransformerBridge.boot_native(
        config, tokenizer=tokenizer, device=device, dtype=dtype, model_name=source
    )
    weights = next(iter(sorted(folder.glob("*final.pth"))), None)
    if weights is None:
        raise FileNotFoundError(f"{source} holds no file *final.pth")
    # The published file is a pickle; weights_only reads tensors and runs nothing.
    state = convert_tl_checkpoint(torch.load(weights, map_location=device, weights_only=True), config)
    state.setdefault("unembed.bias", torch.zeros(config.d_vocab))
    bridge.load_state_dict(state, strict=True)
    return bridge
