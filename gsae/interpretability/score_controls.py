"""Things read like an SAE whose automated scores are known beforehand: they show what a score is
worth.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gsae.interpretability.examples import scan


class Shuffled:
    """An SAE whose activations are dealt to the tokens of each batch at random: no link to the text
    is left.

    Densities and heights of activations stay. Any score must be at chance.
    """

    def __init__(self, sae, seed: int = 0):
        self.sae, self.W_dec, self.about = sae, sae.W_dec, getattr(sae, "about", {})
        self.generator = torch.Generator().manual_seed(seed)

    def encode(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b M"]:
        f = self.sae.encode(x)
        rows = f.flatten(0, -2)
        order = torch.randperm(len(rows), generator=self.generator).to(rows.device)
        return rows[order].view_as(f)


class RandomDirections:
    """Random unit directions, each on at the tokens where an activation lies furthest along it.

    Directions of a trained language model's activations are not meaningless: this shows how much of
    a score belongs to the activations rather than to the dictionary.

    Args:
        x: activations, scaled as the SAE's inputs, that set the thresholds.
        density: share of tokens at which each of the M directions is on, such as the densities of
            an SAE's latents.
    """

    def __init__(self, x: Float[Tensor, "tokens n"], density: Float[Tensor, " M"], seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(len(density), x.shape[1], generator=generator)
        self.W_dec = F.normalize(directions, dim=1).to(x.device)
        along = (x @ self.W_dec.T).sort(0, descending=True).values
        # A direction is on above the activation that so many tokens exceed.
        exceeding = (density.to(x.device) * len(x)).long().clamp(0, len(x) - 1)
        self.theta = along.gather(0, exceeding[None])[0]
        self.about = {"scale": 1.0}

    def encode(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b M"]:
        return torch.relu(x @ self.W_dec.T - self.theta)


def single_tokens(ids: Sequence[int]) -> Callable[[Int[Tensor, "B T"]], Float[Tensor, "B t K"]]:
    """Latents that are on at one token each: what a simple rule explains fully."""
    return lambda part: (part[:, 1:, None] == torch.tensor(ids, device=part.device)).float()


def control(name: str, blocks: Int[Tensor, "N T"], read: Callable, tokenizer, **options) -> dict:
    """Examples of a control, as `automated_scores` takes them; `read` and `options` as in
    `scan`.
    """
    latents, windows = scan(blocks, read, tokenizer, **options)
    numbered = [{"latent": i, **latent} for i, latent in enumerate(latents)]
    return {"provenance": {"run": name}, "latents": numbered, "background": windows}
