"""Metrics from recorded sums: ratios, divided once. No torch."""

from collections.abc import Mapping

import numpy as np

SumsByGroup = Mapping[str, np.ndarray | list]  # a sum a group of text, by name


def divide(a, b) -> np.ndarray:
    """`a / b`, NaN where `b` is 0."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)


def ratios(sums: SumsByGroup) -> dict:
    """Metrics from sums over groups of text, `(…, groups)`: summed over the last axis, then divided
    once.

    `l0` latents a token; `fvu` and `mse` in units where inputs have unit mean squared norm; `gamma`
    (Eq. 10) and `gamma_centred`, the same about the mean; cross-entropies in nats a token;
    `loss_recovered` (Eq. 5) against zero ablation, `loss_recovered_mean` against mean ablation;
    `delta_ce` = ce_sae - ce_clean. Metrics whose sums are not there are left out. Plain floats for
    one-dimensional sums.
    """
    s = {k: np.asarray(v, float).sum(-1) for k, v in sums.items()}
    out = {
        "l0": divide(s["l0"], s["tokens"]),
        "mse": divide(s["error"], s["tokens"]),
        "fvu": divide(s["error"], s["xc_sq"]),
        "gamma": divide(s["x_hat_sq"], s["x_dot"]),  # Eq. 10
        "gamma_centred": divide(s["x_hatc_sq"], s["xc_dot"]),
        "eval_tokens": s["tokens"],
    }
    if "ce_tokens" in s:
        ce = {k: divide(s[f"ce_{k}"], s["ce_tokens"]) for k in ("clean", "zero", "mean", "sae")}
        out |= {f"ce_{k}": v for k, v in ce.items()}
        out["delta_ce"] = ce["sae"] - ce["clean"]
        out["loss_recovered"] = 1 - divide(out["delta_ce"], ce["zero"] - ce["clean"])  # Eq. 5
        out["loss_recovered_mean"] = 1 - divide(out["delta_ce"], ce["mean"] - ce["clean"])
        out["ce_tokens"] = s["ce_tokens"]
    return {k: float(v) if np.ndim(v) == 0 else v for k, v in out.items()}
