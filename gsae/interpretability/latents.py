"""What is shown of an SAE's latents, as plain data, collected in one pass over text."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gsae.interpretability.examples import Pieces, scan
from gsae.interpretability.latent_files import LATENTS_SCHEMA
from gsae.lm import corpus
from gsae.lm.models import LM

AT_ONCE = 64  # latents whose logits and cosines with all M latents are in memory together


@torch.no_grad()
def collect(
    sae,
    lm: LM,
    blocks: Int[Tensor, "N T"],
    site: str,
    layer: int,
    latents: Sequence[int],
    *,
    scale: float | None = None,
    run: str = "",
    facts: int = 10,
    about: dict | None = None,
    **options,
) -> dict:
    """All that a dashboard shows of some latents: `{"schema", "provenance", "latents",
    "background"}`, json-able.

    Args:
        sae: anything with `encode: (..., n) -> (..., M)`, at least 0, and `W_dec: (M, n)`.
        blocks: token blocks to read, for instance of `corpus.blocks(…, "eval", …)`.
        latents: indices of latents, in the order wanted.
        scale: factor on the activations before `encode`; None takes `sae.about["scale"]`.
        run: the SAE's run id.
        facts: how many logits raised and lowered; half as many similar latents and neurons.
        about: more plain values for the provenance, which else has the L0 found in this text.
        options: of `scan`.

    Raises:
        ValueError: without a scale, on latents the SAE does not have, on a site or layer that does
            not fit it.
    """
    scale = scale_of(sae) if scale is None else scale
    check(sae, lm, site, latents)
    reader = Reader(sae, lm, site, layer, latents, scale)
    examples, windows = scan(blocks, reader, lm.tokenizer, **options)
    directions = of_directions(sae, lm, site, layer, latents, facts)
    shown = [row | direction for row, direction in zip(examples, directions, strict=True)]
    return {
        "schema": LATENTS_SCHEMA,
        "provenance": {"run": run, **reader.provenance(blocks), **(about or {})},
        "latents": shown,
        "background": windows,
    }


def scale_of(sae) -> float:
    """The scale that the SAE says its inputs have. Raises ValueError where it says none."""
    scale = getattr(sae, "about", {}).get("scale")
    if scale is None:
        raise ValueError(
            "the SAE does not say how its inputs were scaled: pass scale (1.0 for raw activations)"
        )
    return scale


def check(sae, lm: LM, site: str, latents: Sequence[int]) -> None:
    """Raises ValueError on latents the SAE does not have, and on a site of another width."""
    M, n = sae.W_dec.shape
    different = len(set(latents)) == len(latents)
    if not latents or not different or not 0 <= min(latents) <= max(latents) < M:
        raise ValueError(
            f"latents must be different numbers from 0 to {M - 1}, at least one; got "
            f"{list(latents)[:9]}"
        )
    if n != lm.d(site):
        raise ValueError(
            f"the SAE reads activations of width {n}, {site} of {lm.name} has width {lm.d(site)}"
        )


class Reader:
    """Tokens -> activations of some latents from position 1 on. On the way it counts how often any
    latent of the SAE is on, which gives L0 without a second pass.
    """

    def __init__(self, sae, lm: LM, site: str, layer: int, latents: Sequence[int], scale: float):
        self.sae, self.lm, self.site, self.layer, self.scale = sae, lm, site, layer, scale
        self.latents = torch.tensor(latents, device=sae.W_dec.device)
        self.fired = 0

    def __call__(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B t K"]:
        key = (self.site, self.layer)
        x = self.lm.activations(tokens, [key])[key][:, 1:]
        x = x.to(self.latents.device, torch.float32)
        f = self.sae.encode(x * self.scale)
        self.fired += int((f > 0).sum())
        return f[..., self.latents]

    def provenance(self, blocks: Int[Tensor, "N T"]) -> dict:
        """What was read and with which result; once all blocks are read."""
        N, T = blocks.shape
        M, n = self.sae.W_dec.shape
        tokens = N * (T - 1)
        return {
            "lm": self.lm.name,
            "site": self.site,
            "layer": self.layer,
            "n": n,
            "M": M,
            "scale": float(self.scale),
            "l0": round(self.fired / tokens, 2),
            "tokens": tokens,
            "context": T,
            "corpus": corpus.token_hash(corpus.as_blocks(blocks.cpu().flatten().numpy(), T)),
        }


def of_directions(
    sae, lm: LM, site: str, layer: int, latents: Sequence[int], facts: int
) -> list[dict]:
    """What decoder directions tell without any text: logits, similar latents, neurons; a dict a
    latent.
    """
    W = F.normalize(sae.W_dec.detach().float(), dim=1)
    written = neuron_outputs(lm, site, layer)
    pieces, few = Pieces(lm.tokenizer), facts // 2
    rows = []
    for part in torch.tensor(latents, device=W.device).split(AT_ONCE):
        effects = lm.direct_logits(W[part], site, layer).cpu()
        cosines = (W[part] @ W.T).scatter(1, part[:, None], -torch.inf)  # not itself
        for latent, effect, cosine in zip(part.tolist(), effects, cosines, strict=True):
            direction = W[latent]
            row = {
                "latent": latent,
                "logits": ends(effect, pieces, facts),
                "similar": largest(cosine, min(few, len(W) - 1)),
            }
            if site == "mlp_neurons":
                row["neurons"] = largest(direction.square(), few)
            if written is not None:
                row["aligned"] = largest((written @ direction.to(written.device)).abs(), few)
            rows.append(row)
    return rows


def neuron_outputs(lm: LM, site: str, layer: int) -> Float[Tensor, "d_mlp n"] | None:
    """What each neuron of the layer writes, as unit vectors, at the sites that it writes to; else
    None.
    """
    if site not in ("mlp_out", "resid_post"):
        return None
    return F.normalize(lm.bridge.blocks[layer].mlp.W_out.detach().float(), dim=1)


def largest(values: Float[Tensor, " M"], count: int) -> list[list]:
    """The largest entries as `[index, value]`."""
    top = values.topk(min(count, len(values)))
    entries = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [[index, round(value, 3)] for index, value in entries]


def ends(logits: Float[Tensor, " V"], pieces: Pieces, count: int) -> dict[str, list]:
    """The tokens whose logits a direction raises and lowers most, `[text, logit]`."""
    count = min(count, len(logits))
    raised, lowered = logits.topk(count), logits.topk(count, largest=False)
    return {"raised": labelled(raised, pieces), "lowered": labelled(lowered, pieces)}


def labelled(top: torch.return_types.topk, pieces: Pieces) -> list[list]:
    """The entries of a topk over the vocabulary as `[text, logit]`."""
    entries = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [[pieces[token], round(logit, 2)] for token, logit in entries]
