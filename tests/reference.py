"""The paper's pseudo-code (Eqs 1 to 8, Figs 16 and 17), written naively: one vector at a time, in
its own layout.

Nothing here comes from gsae. Vectors are columns: `W_gate`, `W_mag`, `W_enc` are (M, n) and `W_dec`
is (n, M) with unit columns, so the matrices are the transposes of the package's. Everything is
float64. `p` is a dict of the parameters, `frozen` the copies that the stop-gradient sees (by
default detached ones; finite differences hold them fixed while they move `p`).
"""

import torch


def relu(z):
    return torch.stack([z_i if z_i > 0 else torch.zeros_like(z_i) for z_i in z])


def stop_gradient(p):
    return {name: value.detach().clone() for name, value in p.items()}


def squared_norm(v):
    return sum(v_j * v_j for v_j in v)


def W_mag(p, tie):
    """Eq. 7, row by row."""
    if tie == "none":
        return p["W_mag"]
    rows = [
        torch.exp(p["r_mag"][i]) * row if tie == "r_mag" else row
        for i, row in enumerate(p["W_gate"])
    ]
    return torch.stack(rows)


def baseline_encode(p, x):
    return relu(p["W_enc"] @ (x - p["b_dec"]) + p["b_enc"])  # Eq. 2


def decode(p, f):
    return p["W_dec"] @ f + p["b_dec"]  # Eqs 1, 3


def baseline_losses(p, x, lam):
    """The two terms of Eq. 4 for one vector."""
    f = baseline_encode(p, x)
    return {"reconstruction": squared_norm(x - decode(p, f)), "sparsity": lam * f.abs().sum()}


def gated_paths(p, x, frozen, tie="r_mag", centre_grad=True):
    """Pre-activations of the gate and of the magnitudes (under the brace of Eq. 6)."""
    centred = x - (p["b_dec"] if centre_grad else frozen["b_dec"])
    return p["W_gate"] @ centred + p["b_gate"], W_mag(p, tie) @ centred + p["b_mag"]


def gated_encode(p, x, frozen=None, tie="r_mag", step=True, centre_grad=True):
    pi_gate, pi_mag = gated_paths(p, x, frozen or stop_gradient(p), tie, centre_grad)
    if not step:  # ablation: the gate path's own values, scaled as the magnitudes are
        return relu(pi_gate) * torch.exp(p["r_mag"]) if tie == "r_mag" else relu(pi_gate)
    gate = torch.tensor([1.0 if pi > 0 else 0.0 for pi in pi_gate], dtype=x.dtype)
    return gate * relu(pi_mag)  # Eq. 6


def gated_losses(
    p,
    x,
    lam,
    *,
    tie="r_mag",
    freeze="both",
    auxiliary=True,
    step=True,
    centre_grad=True,
    magnitude_l1=False,
    frozen=None,
):
    """The three terms of Eq. 8 for one vector."""
    frozen = frozen or stop_gradient(p)
    f = gated_encode(p, x, frozen, tie, step, centre_grad)
    via_gate = relu(gated_paths(p, x, frozen, tie, centre_grad)[0])
    terms = {
        "reconstruction": squared_norm(x - decode(p, f)),
        "sparsity": lam * via_gate.abs().sum(),
    }
    if magnitude_l1:
        terms["sparsity"] = terms["sparsity"] + lam * f.abs().sum()
    if auxiliary:
        W_dec = (frozen if freeze in ("both", "W_dec") else p)["W_dec"]
        b_dec = (frozen if freeze in ("both", "b_dec") else p)["b_dec"]
        terms["auxiliary"] = squared_norm(x - (W_dec @ via_gate + b_dec))
    return terms


def batch_losses(one, p, xs, lam, **switches):
    """Each term averaged over the batch, example by example."""
    each = [one(p, x, lam, **switches) for x in xs]
    return {name: sum(terms[name] for terms in each) / len(each) for name in each[0]}
