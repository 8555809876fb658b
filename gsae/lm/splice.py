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
    """Cross-entropy of a batch of blocks with one site's activations replaced: the CE terms of
    Eq. 5.

    Position 0 keeps its clean activation and targets count from position 2 on, the first that a
    replacement can reach. With `keep_pos0` position 0 is replaced like any other, and targets count
    from position 1 on.

    Attributes: `clean`, (B, T, n), the activations of the clean pass; `targets`, the number of
    predictions counted in each block.
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
        # again. A site at the end of its layer needs nothing of the layer either.
        layer = int(hook.split(".")[1])
        self.start = layer + 1 if hook.endswith("hook_resid_post") else layer
        # a layer that runs again must be given what entered it in the clean pass
        self._enter = None if self.start > layer else f"blocks.{layer}.hook_resid_pre"
        read = self._clean_pass()
        self._shape = read[hook].shape  # heads of attention have a dimension of their own
        self.clean = read[hook].flatten(2)
        self._entered = read.get(self._enter)

    def _clean_pass(self) -> dict[str, Tensor]:
        """Run the model as it is. Returns what was read: hook -> activation."""
        read: dict[str, Tensor] = {}

        def reader(name: str):
            def keep(value, hook):
                read[name] = value

            return keep

        def note_type(module, args, output):
            # architectures differ in whether blocks return tuples or bare tensors
            self._tuples = isinstance(output, tuple)

        names = [self.hook] if self._enter is None else [self.hook, self._enter]
        bottom = self.bridge.blocks[0].original_component
        handle = bottom.register_forward_hook(note_type)
        try:
            with self.bridge.hooks(fwd_hooks=[(name, reader(name)) for name in names]):
                self._clean_loss = self._loss(self.bridge(self.tokens, return_type="logits"))
        finally:
            handle.remove()
        return read

    def _loss(self, logits: Float[Tensor, "B T V"]) -> Float[Tensor, " B"]:
        """Summed nats of each block in fp32."""
        blocks = zip(logits[:, self.first : -1], self.tokens[:, self.first + 1 :], strict=True)
        # block by block: a whole batch of fp32 logits is too large
        sums = [
            F.cross_entropy(predicted.float(), targets.to(predicted.device), reduction="sum")
            for predicted, targets in blocks
        ]
        return torch.stack(sums)

    @torch.no_grad()
    def ce(self, replacement: Float[Tensor, "B T n"] | None = None) -> Float[Tensor, " B"]:
        """Cross-entropy in nats, summed over the counted targets of each block; None: the clean
        pass.

        Zero ablation is `ce(torch.zeros_like(splice.clean))`, the zeta of Eq. 5.
        Raises ValueError if the replacement's shape is not that of `clean`.
        """
        if replacement is None:
            return self._clean_loss
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
            hooks.append((self._enter, lambda value, hook: self._entered))
        below = self.bridge.blocks[: self.start]
        with _skipped(below, self._tuples), self.bridge.hooks(fwd_hooks=hooks):
            return self._loss(self.bridge(self.tokens, return_type="logits"))


@contextmanager
def _skipped(blocks: Iterable, tuples: bool) -> Iterator[None]:
    """Blocks that return their input. (The bridge's own `start_at_layer` still computes the layers
    below.)
    """

    def identity(hidden_states, *args, **kwargs):
        return (hidden_states,) if tuples else hidden_states

    layers = [block.original_component for block in blocks]
    # a `forward` of the instance is accelerate's, which brings inputs to the layer's GPU
    placed = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = identity
        yield
    finally:
        for layer, forward in zip(layers, placed, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
