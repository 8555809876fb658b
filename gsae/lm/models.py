"""All contact with a language model: load one, read a site's activations, measure the cross-entropy
with a site replaced. Everything runs through TransformerLens' `TransformerBridge`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.model_registry.registry_io import resolve_model_alias
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from gsae.lm import smollm2, tl_legacy
from gsae.lm.names import MINI, NAMES, TOKENIZERS, hook
from gsae.lm.splice import Splice
from gsae.system import hub_access, wheels
from gsae.system.devices import has_bfloat16, training_device
from gsae.system.hub_access import without_progress_bar


class ModelError(RuntimeError):
    """A language model cannot be had; the message says which one and what to do."""


class _Enough(Exception):
    """Raised inside a forward pass once every wanted activation has been read."""


class LM:
    """A language model with named sites.

    Attributes: `name`, `bridge`, `tokenizer`, `device`, `dtype`, `n_layers`, `context` (tokens in
    a block), and `commit`, that of its weights on the hub (None for a model that is not from
    there).
    """

    def __init__(
        self,
        bridge: TransformerBridge,
        name: str,
        context: int | None = None,
        commit: str | None = None,
    ):
        self.bridge, self.name, self.tokenizer, self.commit = bridge, name, bridge.tokenizer, commit
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
        widths = {"attn_z": cfg.n_heads * cfg.d_head, "mlp_neurons": cfg.d_mlp}
        return widths.get(site, cfg.d_model)

    def _check(self, tokens: Tensor, sites: Sequence[tuple[str, int]]) -> Tensor:
        """The tokens as the model takes them. Raises ValueError on what it cannot give or read."""
        for site, layer in sites:
            hook(site, layer)
            if not 0 <= layer < self.n_layers:
                raise ValueError(
                    f"{self.name} has no layer {layer}: expected 0 to {self.n_layers - 1}"
                )
        longest = self.bridge.cfg.n_ctx
        if tokens.shape[1] > longest:
            raise ValueError(
                f"{self.name} reads at most {longest} tokens, got blocks of {tokens.shape[1]}"
            )
        return tokens.to(self.device, torch.long)

    @torch.no_grad()
    def activations(
        self, tokens: Int[Tensor, "B T"], sites: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], Float[Tensor, "B T _"]]:
        """Activations at several (site, layer) in one forward pass, which ends once the last one is
        read.

        Position 0 is included. The tensors keep the model's dtype and device.
        Raises ValueError on an unknown site or layer, or on blocks longer than the model's context.
        """
        tokens = self._check(tokens, sites)
        wanted = set(sites)
        read = {}

        def reader(key):
            def keep(value, hook):
                read[key] = value.flatten(2)
                if len(read) == len(wanted):
                    raise _Enough

            return keep

        hooks = [(hook(*key), reader(key)) for key in wanted]
        try:
            with self.bridge.hooks(fwd_hooks=hooks):
                self.bridge(tokens, return_type="logits")
        except _Enough:
            pass
        missing = wanted - set(read)
        if missing:
            raise ModelError(f"{self.name} gave no activations at {missing}: it has no such site")
        return read

    @torch.no_grad()
    def direct_logits(
        self, directions: Float[Tensor, "K n"], site: str, layer: int
    ) -> Float[Tensor, "K V"]:
        """What directions at a site do to the logits directly: no layer in between takes part.

        The logits the model gives to a residual stream that holds nothing but the direction, less
        those of an empty one, about their mean. `attn_z` and `mlp_neurons` reach the stream through
        W_O and W_out. The final normalisation takes out the length, so that values compare between
        tokens, not between directions. Raises ValueError on an unknown site.
        """
        hook(site, 0)
        block = self.bridge.blocks[layer]
        rows = directions.to(self.device, torch.float32)
        if site == "attn_z":
            rows = rows @ block.attn.W_O.flatten(0, 1).float()
        elif site == "mlp_neurons":
            rows = rows @ block.mlp.W_out.float()
        rows = rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)

        def normalised(x):
            return self.bridge.ln_final(x.to(self.dtype)).float()

        empty = torch.zeros_like(rows[:1])
        logits = (normalised(rows) - normalised(empty)) @ self.bridge.unembed.W_U.float()
        return logits - logits.mean(-1, keepdim=True)

    def splice(
        self, tokens: Int[Tensor, "B T"], site: str, layer: int, keep_pos0: bool = False
    ) -> Splice:
        """Run the clean forward pass once, ready to replace one site's activations: see
        `Splice`.
        """
        tokens = self._check(tokens, [(site, layer)])
        return Splice(self.bridge, tokens, hook(site, layer), keep_pos0)


def load(
    name: str,
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    device_map: str | dict | None = None,
) -> LM:
    """Load a language model by name: one of `NAMES`, a Hugging Face repository ("owner/name"), or a
    folder. A name may end in "@revision": a commit, a tag or a branch.

    Args:
        device: "auto" is GSAE_LM_DEVICE if set, else cuda if there is one, else cpu. "auto-split"
            spreads a model that one GPU does not hold over all of this process's GPUs (accelerate).
        dtype: None is float32 for gelu-1l-mini, for the others bfloat16 where the processor
            computes in it (half the time), else float32.
        device_map: accelerate's, to place the model oneself.

    Raises:
        ModelError: if the model cannot be had; it has the name and the remedy.
    """
    if device == "auto-split":
        device_map = device_map or "auto"
    device = _device(device)
    if dtype is None:
        dtype = _default_dtype(name, device)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if name == MINI:
        bridge, commit = _mini(), None
    else:
        bridge, commit = _boot(name, device, dtype, device_map)
    _move(bridge, device, dtype)
    spec = NAMES.get(hub_access.split(name)[0])
    return LM(bridge, name, spec and spec.context, commit)


def _device(device: str) -> str:
    default = training_device()
    if device == "auto":
        return os.environ.get("GSAE_LM_DEVICE") or default
    return default if device == "auto-split" else device


def _default_dtype(name: str, device: str) -> torch.dtype:
    if name == MINI:
        return torch.float32
    if device == "cpu":
        fast = has_bfloat16()
    elif device.startswith("cuda"):  # a T4, say, only emulates it
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = True
    return torch.bfloat16 if fast else torch.float32


def _boot(
    name: str, device: str, dtype: torch.dtype, device_map: str | dict | None
) -> tuple[TransformerBridge, str | None]:
    """A model of the hub or of a folder, and the commit of its weights."""
    with _remedy(name), without_progress_bar():
        source, revision = _source(name)
        words = tokenizer(name)
        if source.startswith(tl_legacy.PREFIXES):
            bridge = tl_legacy.boot(source, revision, words)
        elif device_map is None:
            model = _pretrained(source, revision, dtype).to(device)
            bridge = TransformerBridge.boot_transformers(
                source, hf_model=model, tokenizer=words, device=device, dtype=dtype
            )
        else:  # accelerate places the model; to name a device would undo that
            model = _pretrained(source, revision, dtype, device_map=device_map)
            bridge = TransformerBridge.boot_transformers(
                source, hf_model=model, tokenizer=words, device=None, dtype=dtype
            )
    return bridge, hub_access.commit(source, revision)


def _pretrained(source: str, revision: str | None, dtype: torch.dtype, **placed):
    return AutoModelForCausalLM.from_pretrained(
        source, revision=revision or "main", dtype=dtype, **placed
    )


def _move(bridge: TransformerBridge, device: str, dtype: torch.dtype) -> None:
    """Bring a model to its device and dtype, unless accelerate has spread it over several."""
    device_map = getattr(bridge.original_model, "hf_device_map", None) or {}
    if len(set(device_map.values())) > 1:
        return
    weight = next(bridge.parameters())
    wanted = torch.empty(0, device=device).device  # "cuda" with the number of the current GPU
    if (weight.device, weight.dtype) != (wanted, dtype):
        # not without need: it takes seconds even where there is nothing to do
        bridge.to(device, dtype, print_details=False)


def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A language model's tokenizer without its weights. Raises ModelError as `load`."""
    if name == MINI:
        return _mini().tokenizer
    with _remedy(name):
        source, revision = _source(name)
        if source.startswith(tl_legacy.PREFIXES):  # its tokenizer is another repository's
            source = tl_legacy.config(source, revision).tokenizer_name
            revision = TOKENIZERS.get(source)
        return AutoTokenizer.from_pretrained(source, revision=revision or "main")


@contextmanager
def _remedy(name: str) -> Iterator[None]:
    """Inside, an OSError becomes a ModelError that says why the model cannot be had."""
    try:
        yield
    except OSError as error:
        source, revision = _source(name)
        reason = hub_access.why(error, source, revision=revision)
        raise ModelError(
            f"cannot load the language model {name!r} ({source}): {reason}.\n'smollm2' and "
            "'gelu-1l-mini' need no hub"
        ) from error


def _source(name: str) -> tuple[str, str | None]:
    """A folder or a repository, and the revision asked for or pinned."""
    if name == "smollm2":
        return str(smollm2.smollm2()), None
    name, revision = hub_access.split(name)
    if name in NAMES:
        return NAMES[name].source, revision or NAMES[name].revision
    return resolve_model_alias(name) or name, revision


def _mini() -> TransformerBridge:
    from gsae.lm import gelu_1l_mini  # only this model needs it

    return gelu_1l_mini.load_bridge(wheels.data_path(MINI))
