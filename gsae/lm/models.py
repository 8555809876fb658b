"""All contact with a language model: load one, read a site's activations, measure the cross-entropy
with a site replaced. Everything runs through TransformerLens' `TransformerBridge`."""

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
from gsae.lm.names import NAMES, TOKENIZERS, hook
from gsae.lm.splice import Splice
from gsae.system import hub_access, wheels
from gsae.system.devices import has_bfloat16
from gsae.system.hub_access import _quiet


class ModelError(RuntimeError):
    """A language model cannot be had; the message says which one and what to do."""


class _Enough(Exception):
    """Raised inside a forward pass once every wanted activation has been read."""


class LM:
    """A language model with named sites: `name, bridge, tokenizer, device, dtype, n_layers,
    context`, and `commit`, that of its weights on the hub (None for a model that is not from
    there)."""

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
        return {"attn_z": cfg.n_heads * cfg.d_head, "mlp_neurons": cfg.d_mlp}.get(site, cfg.d_model)

    def _check(self, tokens: Tensor, sites: Sequence[tuple[str, int]]) -> Tensor:
        for site, layer in sites:
            hook(site, layer)
            if not 0 <= layer < self.n_layers:
                raise ValueError(
                    f"{self.name} has no layer {layer}: expected 0 to {self.n_layers - 1}"
                )
        if tokens.shape[1] > (longest := self.bridge.cfg.n_ctx):
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
        tokens, found, wanted = self._check(tokens, sites), {}, set(sites)

        def reader(key):
            def read(value, hook):
                found[key] = value.flatten(2)
                if len(found) == len(wanted):
                    raise _Enough

            return read

        try:
            with self.bridge.hooks(fwd_hooks=[(hook(*key), reader(key)) for key in wanted]):
                self.bridge(tokens, return_type="logits")
        except _Enough:
            pass
        if missing := wanted - set(found):
            raise ModelError(f"{self.name} gave no activations at {missing}: it has no such site")
        return found

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
        hook(site, layer)
        block, rows = self.bridge.blocks[layer], directions.to(self.device, torch.float32)
        if site == "attn_z":
            rows = rows @ block.attn.W_O.flatten(0, 1).float()
        elif site == "mlp_neurons":
            rows = rows @ block.mlp.W_out.float()
        rows = rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
        final = lambda x: self.bridge.ln_final(x.to(self.dtype)).float()
        logits = (final(rows) - final(torch.zeros_like(rows[:1]))) @ self.bridge.unembed.W_U.float()
        return logits - logits.mean(-1, keepdim=True)

    def splice(
        self, tokens: Int[Tensor, "B T"], site: str, layer: int, keep_pos0: bool = False
    ) -> Splice:
        """Run the clean forward pass once, ready to replace one site's activations: see
        `Splice`.
        """
        return Splice(
            self.bridge, self._check(tokens, [(site, layer)]), hook(site, layer), keep_pos0
        )


def load(
    name: str,
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    device_map: str | dict | None = None,
) -> LM:
    """Load a language model by name: one of `NAMES`, a Hugging Face repository ("owner/name"), or a
    folder.

    A name may end in "@revision": a commit, a tag or a branch. `device`: "auto" is GSAE_LM_DEVICE
    if set, else cuda if there is one, else cpu. "auto-split" spreads a model that one GPU does not
    hold over all of this process's GPUs (accelerate); `device_map` is accelerate's, to place it
    oneself. `dtype`: None is float32 for gelu-1l-mini, for the others bfloat16 where the processor
    computes in it (half the time), else float32. Raises ModelError with the name and the remedy if
    the model cannot be had.
    """
    if device == "auto":
        device = os.environ.get("GSAE_LM_DEVICE") or (
            "cuda" if torch.cuda.is_available() else "cpu"
        )
    if device == "auto-split":
        device_map, device = device_map or "auto", "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        if device == "cpu":
            fast = has_bfloat16()
        else:  # a T4, say, only emulates it
            fast = not device.startswith("cuda") or torch.cuda.is_bf16_supported(
                including_emulation=False
            )
        dtype = torch.bfloat16 if fast and name != "gelu-1l-mini" else torch.float32
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    commit = None
    if name == "gelu-1l-mini":
        bridge = _mini()
    else:
        with _remedy(name), _quiet():
            (source, revision), words = _source(name), tokenizer(name)
            if source.startswith(tl_legacy.PREFIXES):
                bridge = tl_legacy.boot(source, revision, words)
            else:
                placed = {} if device_map is None else {"device_map": device_map}
                model = AutoModelForCausalLM.from_pretrained(
                    source, revision=revision or "main", dtype=dtype, **placed
                )
                bridge = TransformerBridge.boot_transformers(
                    source,
                    hf_model=model if placed else model.to(device),
                    tokenizer=words,
                    device=None if placed else device,
                    dtype=dtype,
                )
        commit = hub_access.commit(source, revision)
    weight = next(bridge.parameters())
    split = (
        len(set((getattr(bridge.original_model, "hf_device_map", None) or {"": 0}).values())) > 1
    )
    if not split and (weight.device, weight.dtype) != (torch.empty(0, device=device).device, dtype):
        bridge.to(
            device, dtype, print_details=False
        )  # takes seconds even where there is nothing to do
    spec = NAMES.get(hub_access.split(name)[0])
    return LM(bridge, name, spec and spec.context, commit)


def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A language model's tokenizer without its weights. Raises ModelError as `load`."""
    if name == "gelu-1l-mini":
        return _mini().tokenizer
    with _remedy(name):
        source, revision = _source(name)
        if source.startswith(tl_legacy.PREFIXES):  # its tokenizer is another repository's
            source = tl_legacy.config(source, revision).tokenizer_name
            revision = TOKENIZERS.get(source)
        return AutoTokenizer.from_pretrained(source, revision=revision or "main")


@contextmanager
def _remedy(name: str) -> Iterator[None]:
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

    return gelu_1l_mini.load_bridge(wheels.data_path("gelu-1l-mini"))
