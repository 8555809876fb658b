"""What is shown of an SAE's latents, as plain data, collected in one pass over text."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gsae.interpretability.examples import Pieces, scan
from gsae.interpretability.latent_files import SCHEMA
from gsae.lm import corpus
from gsae.lm.models import LM


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
    M, n = sae.W_dec.shape
    if scale is None and (scale := getattr(sae, "about", {}).get("scale")) is None:
        raise ValueError(
            "the SAE does not say how its inputs were scaled: pass scale (1.0 for raw activations)"
        )
    if not latents or len(set(latents)) < len(latents) or not 0 <= min(latents) <= max(latents) < M:
        raise ValueError(
            f"latents must be different numbers from 0 to {M - 1}, at least one; got "
            f"{list(latents)[:9]}"
        )
    if n != lm.d(site):
        raise ValueError(
            f"the SAE reads activations of width {n}, {site} of {lm.name} has width {lm.d(site)}"
        )
    chosen, key, fired = torch.tensor(latents, device=sae.W_dec.device), (site, layer), 0

    def read(part: Tensor) -> Tensor:
        nonlocal fired
        f = sae.encode(
            lm.activations(part, [key])[key][:, 1:].to(chosen.device, torch.float32) * scale
        )
        fired += int((f > 0).sum())
        return f[..., chosen]

    found, windows = scan(blocks, read, lm.tokenizer, **options)
    W, neurons = F.normalize(sae.W_dec.detach().float(), dim=1), outputs(lm, site, layer)
    for start in range(0, len(latents), 64):
        part = chosen[start : start + 64]
        effects = lm.direct_logits(W[part], site, layer).cpu()
        cosines = (W[part] @ W.T).scatter(1, part[:, None], -torch.inf)  # not itself
        for k, (effect, cosine) in enumerate(zip(effects, cosines, strict=True), start):
            found[k] |= {"latent": latents[k], "logits": ends(effect, Pieces(lm.tokenizer), facts)}
            found[k]["similar"] = largest(cosine, min(facts // 2, M - 1))
            if site == "mlp_neurons":
                found[k]["neurons"] = largest(W[latents[k]].square(), facts // 2)
            if neurons is not None:
                found[k]["aligned"] = largest(
                    (neurons @ W[latents[k]].to(neurons.device)).abs(), facts // 2
                )
    tokens = corpus.as_blocks(blocks.cpu().flatten().numpy(), blocks.shape[1])
    count = blocks.shape[0] * (blocks.shape[1] - 1)
    provenance = {
        "run": run,
        "lm": lm.name,
        "site": site,
        "layer": layer,
        "n": n,
        "M": M,
        "scale": float(scale),
        "l0": round(fired / count, 2),
        "tokens": count,
        "context": blocks.shape[1],
        "corpus": corpus.token_hash(tokens),
        **(about or {}),
    }
    return {"schema": SCHEMA, "provenance": provenance, "latents": found, "background": windows}


def outputs(lm: LM, site: str, layer: int) -> Float[Tensor, "d_mlp n"] | None:
    """What each neuron of the layer writes, as unit vectors, at the sites that it writes to; else
    None.
    """
    if site not in ("mlp_out", "resid_post"):
        return None
    return F.normalize(lm.bridge.blocks[layer].mlp.W_out.detach().float(), dim=1)


def largest(values: Float[Tensor, " M"], count: int) -> list[list]:
    """The largest entries as `[index, value]`."""
    top = values.topk(min(count, len(values)))
    return [
        [i, round(v, 3)] for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def ends(logits: Float[Tensor, " V"], pieces: Pieces, count: int) -> dict[str, list]:
    """The tokens whose logits a direction raises and lowers most, `[text, logit]`."""
    count = min(count, len(logits))
    ids = {
        "raised": logits.topk(count).indices,
        "lowered": logits.topk(count, largest=False).indices,
    }
    return {
        name: [[pieces[i], round(float(logits[i]), 2)] for i in order.tolist()]
        for name, order in ids.items()
    }
