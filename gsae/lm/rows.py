"""Rows of activations, before they are used: whether they are finite, and how large they are."""

import warnings
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def check_finite(
    x: Float[Tensor, "B T n"],
    first_block: int,
    *,
    lm: str,
    site: str,
    layer: int,
    text: str = "text",
) -> None:
    """Raises ValueError, naming block, site and layer, where an activation is NaN or infinite.

    Args:
        x: activations of consecutive blocks.
        first_block: the number, in the text, of the first of them.
        lm: the language model's name.
        text: what the text is called in the message.
    """
    finite = x.isfinite()
    if finite.all():
        return
    spoiled = (~finite).flatten(1).any(1).nonzero()[:, 0]
    raise ValueError(
        f"{lm}: NaN or infinite activation at {site} of layer {layer}, block "
        f"{first_block + int(spoiled[0])} of the {text}; load the model in float32, or look at "
        "that block"
    )


def measure(parts: Iterable[Tensor], site: str, layer: int) -> dict:
    """`scale`, `mean` (a list) and `top_share` of rows that come in parts, as `Store` has them;
    warns of outliers.
    """
    total, squared_norms = 0, []
    for part in parts:
        part = part.float()
        squared_norms.append(part.square().sum(-1).cpu())
        # in float64: over millions of rows float32 would lose the mean's last digits
        total = total + part.sum(0, dtype=torch.float64).cpu()
    squared_norms = torch.cat(squared_norms)
    rows = len(squared_norms)
    whole = squared_norms.sum(dtype=torch.float64)
    largest = squared_norms.topk(max(1, rows // 1000)).values
    share = float(largest.sum(dtype=torch.float64) / whole)
    scale = float((whole / rows).rsqrt())  # D1
    if share > 0.05:
        warnings.warn(
            f"{site} of layer {layer}: 0.1 % of the tokens hold {share:.0%} of the squared norm; "
            "scale, lambda, FVU and gamma will be about them. Leave out position 0, or look at "
            "these tokens",
            stacklevel=4,  # whoever asked for the store or the buffer
        )
    return {"scale": scale, "mean": (total / rows * scale).tolist(), "top_share": share}
