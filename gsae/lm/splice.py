"""Cross-entropy of a language model with one site's activations replaced, rerunning only the layers
above.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


class Splice:
    """Cross-entropy of a batch of blocks with one site's activations replaced (the CE terms of Eq.
    5).

    `clean`: (B, T, n), the activations of the clean pass; `targets`: predictions counted in each
    block. Position 0 keeps its clean activation and targets count from position 2 on, the first
    that a replacement can reach. With `keep_pos0` position 0 is replaced like any other, and
    targets count from position 1 on.
    """

    @torch.no_grad()
    def __init__(
        self,
        bridge: TransformerBridge,
        tokens: Int[Tensor, "B T"],
        hook: str,
        keep_pos0: bool = False,
    ):
        self.bridge, self.tokens, self.hook = bridge, tokens, hook
        self.first = 0 if keep_pos0 else 1  # the first position whose activation is replaced
        self.targets = tokens.shape[1] - 1 - self.first
        # Layers below the site give the same result in every pass: only those from `start` on run
        # again.
        layer = int(hook.split(".")[1])
        self.start = layer + hook.endswith("hook_resid_post")
        seen: dict = {}
        hooks = [(self.hook, lambda value, hook: seen.update(clean=value))]
        if self.start == layer:
            enter = f"blocks.{layer}.hook_resid_pre"
            hooks.append((enter, lambda value, hook: seen.update(enter=(enter, value))))
        bottom = self.bridge.blocks[0].original_component
        handle = bottom.register_forward_hook(
            lambda m, i, out: seen.update(tuples=isinstance(out, tuple))
        )
        try:
            with self.bridge.hooks(fwd_hooks=hooks):
                self._clean = self._loss(self.bridge(tokens, return_type="logits"))
        finally:
            handle.remove()
        self._enter, self._shape = seen.get("enter"), seen["clean"].shape
        self._tuples = seen[
            "tuples"
        ]  # whether blocks return tuples or bare tensors: architectures differ
        self.clean = seen["clean"].flatten(2)

    def _loss(self, logits: Float[Tensor, "B T V"]) -> Float[Tensor, " B"]:
        """Summed nats of each block in fp32, block by block: a whole batch of fp32 logits is too
        large.
        """
        blocks = zip(logits[:, self.first : -1], self.tokens[:, self.first + 1 :], strict=True)
        return torch.stack(
            [F.cross_entropy(row.float(), t.to(row.device), reduction="sum") for row, t in blocks]
        )

    @torch.no_grad()
    def ce(self, replacement: Float[Tensor, "B T n"] | None = None) -> Float[Tensor, " B"]:
        """Cross-entropy in nats, summed over the counted targets of each block; None: the clean
        pass.

        Zero ablation is `ce(torch.zeros_like(splice.clean))`, the zeta of Eq. 5.
        Raises ValueError if the replacement's shape is not that of `clean`.
        """
        if replacement is None:
            return self._clean
        if replacement.shape != self.clean.shape:
            shapes = f"{tuple(replacement.shape)}, expected {tuple(self.clean.shape)}"
            raise ValueError(
                f"a replacement has shape {shapes}: one vector for each token of the blocks"
            )
        new = replacement.to(self.clean, copy=True)
        new[:, : self.first] = self.clean[:, : self.first]
        new = new.view(self._shape)
        hooks = [(self.hook, lambda value, hook: new)]
        if self._enter is not None:
            name, residual = self._enter
            hooks.append((name, lambda value, hook: residual))
        with (
            _skipped(self.bridge.blocks[: self.start], self._tuples),
            self.bridge.hooks(fwd_hooks=hooks),
        ):
            return self._loss(self.bridge(self.tokens, return_type="logits"))


@contextmanager
def _skipped(blocks: Iterable, tuples: bool) -> Iterator[None]:
    """Blocks that return their input. (The bridge's own `start_at_layer` still computes the layers
    below.)
    """

    def identity(hidden_states, *args, **kwargs):
        return (hidden_states,) if tuples else hidden_states

    layers = [block.original_component for block in blocks]
    own = [
        layer.__dict__.get("forward") for layer in layers
    ]  # accelerate's, where it spreads a model over GPUs
    try:
        for layer in layers:
            layer.forward = identity
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
