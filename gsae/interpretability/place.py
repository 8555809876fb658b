"""A place of a language model with the text that its SAEs' latents are shown on."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gsae.evidence.run import Run
from gsae.experiments.site import Site
from gsae.lm.models import LM

BATCH = 16  # blocks
THRESHOLD_BLOCKS = 512  # of the text, on which random directions get their thresholds


class Once(LM):
    """A language model that reads each batch of text once: the activations are kept in bfloat16, 2
    n bytes a token.
    """

    def __init__(self, lm: LM):
        vars(self).update(vars(lm))
        self.kept: dict = {}

    def activations(self, tokens, sites):
        key = (tokens.cpu().numpy().tobytes(), *sites)
        if key not in self.kept:
            activations = super().activations(tokens, sites)
            self.kept[key] = {site: x.bfloat16().cpu() for site, x in activations.items()}
        return self.kept[key]


def held_out(run: Run, lm: LM, tokens: int) -> Int[Tensor, "N T"]:
    """Blocks of evaluation text with at least that many tokens after position 0."""
    count = -(-tokens // (run.context - 1))
    blocks = Site(run, lm).blocks("eval", count)
    return torch.as_tensor(blocks.with_format("torch")["tokens"][:]).long()


class Place:
    """One place of a language model with the text that its SAEs' latents are shown on: `lm, blocks,
    key`.
    """

    def __init__(self, run: Run, lm: LM, tokens: int):
        self.lm, self.key = Once(lm), (run.site, run.layer)
        self.blocks = held_out(run, self.lm, tokens)

    def read(self, encode: Callable[[Tensor], Tensor], scale: float) -> Callable[[Tensor], Tensor]:
        """`read` of `gsae.interpretability.examples`: tokens -> what `encode` makes of the scaled
        activations from position 1 on.
        """

        def read(tokens: Int[Tensor, "B T"]) -> Tensor:
            x = self.lm.activations(tokens, [self.key])[self.key][:, 1:]
            return encode(x.float() * scale)

        return read

    @torch.no_grad()
    def counts(self, encode: Callable[[Tensor], Tensor], scale: float) -> Int[Tensor, " M"]:
        """At how many tokens each latent is on."""
        read = self.read(encode, scale)
        return sum((read(part) > 0).sum((0, 1)) for part in self.blocks.split(BATCH))

    @torch.no_grad()
    def sample(self, scale: float) -> Float[Tensor, "tokens n"]:
        """Scaled activations of the first blocks."""
        read = self.read(lambda x: x, scale)
        parts = self.blocks[:THRESHOLD_BLOCKS].split(BATCH)
        return torch.cat([read(part).flatten(0, 1) for part in parts])
