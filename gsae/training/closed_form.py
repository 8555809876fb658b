"""Hand-derived gradients of the two losses of the paper: the fast path of `gsae.training.loop`.

Seven dense products a step for the Gated SAE (14 n M operations a sample), five for the baseline
(10 n M). Products in bfloat16 where asked, everything else in float32; the element-wise parts
between products are what `torch.compile` fuses. Latents come first, `(…, M, batch)`: every sum over
the batch then runs along memory, which makes the element-wise parts ten times as fast on CPUs.
Written for any leading dimensions of the parameters, so that one SAE and a stack share the code,
and for two ways to multiply: `Dense`, and `gsae.training.sparse_products.Open` where few latents
are on. The plain classes remain the definition: tests compare every gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Gradients = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def column(b: Tensor) -> Tensor:
    return b.unsqueeze(-1)


def gated_codes(p, q, b_gate, r_mag, b_mag, magnitude_l1, dtype):
    """Activations of both decodes (Eqs 6, 7); per latent, the penalised sum and how often the
    latent is on.
    """
    pi_gate, pi_mag = p.float() + column(b_gate), q.float() * column(r_mag.exp()) + column(b_mag)
    a, f = torch.relu(pi_gate), torch.relu(pi_mag) * (pi_gate > 0)
    return f.to(dtype), a.to(dtype), (a + f if magnitude_l1 else a).sum(-1), (f > 0).float().sum(-1)


def gated_back(p, q, g_rec, g_aux, b_gate, r_mag, b_mag, penalty, magnitude_l1, dtype):
    """Gradients at `p` (through the gate, and, where `q` is `p`, the magnitudes), at `q`, the
    biases and `r_mag`.
    """
    tied, scale = q is p, column(r_mag.exp())
    p, q, g_mag = p.float(), q.float(), g_rec.float()
    is_open = p + column(b_gate) > 0
    g_mag = (g_mag + penalty if magnitude_l1 else g_mag) * (
        is_open & (q * scale + column(b_mag) > 0)
    )
    g_gate = (penalty if g_aux is None else g_aux.float() + penalty) * is_open
    h = (g_gate + g_mag * scale).to(dtype) if tied else g_gate.to(dtype)
    h_mag = None if tied else (g_mag * scale).to(dtype)
    return h, h_mag, g_gate.sum(-1), g_mag.sum(-1), (g_mag * q).sum(-1) * r_mag.exp()


def baseline_codes(p, b_enc, dtype):
    f = torch.relu(p.float() + column(b_enc))
    return f.to(dtype), f.sum(-1), (f > 0).float().sum(-1)


def baseline_back(p, back, b_enc, penalty, dtype):
    h = (back.float() + penalty) * (p.float() + column(b_enc) > 0)
    return h.to(dtype), h.sum(-1)


def errors(decoded, b_dec, x, dtype):
    """Error of one decode, times 2 / batch as gradients need it, its sum over the batch, and its
    square by row.
    """
    e = decoded.float() + b_dec.unsqueeze(-2) - x
    return (e * (2 / x.shape[-2])).to(dtype), e.sum(-2) * (2 / x.shape[-2]), e.square().sum(-1)


class Dense:
    """The products of a step and its element-wise parts, over every latent of every sample."""

    def __init__(self, fuse: Callable):
        self.fuse = fuse

    def pick(self, p: Tensor) -> Tensor:
        return p

    def spread(self, *vectors: Tensor) -> tuple[Tensor, ...]:  # of (M,), to where `p` is
        return vectors

    def sums(self, *vectors: Tensor) -> tuple[Tensor, ...]:  # back to (M,)
        return vectors

    def encode(self, W: Tensor, u: Tensor) -> Tensor:
        return W.mT @ u.mT

    def decode(self, f: Tensor, W_dec: Tensor) -> Tensor:
        return f.mT @ W_dec

    def back(self, W_dec: Tensor, e: Tensor) -> Tensor:
        return W_dec @ e.mT

    def to_decoder(self, f: Tensor, e: Tensor) -> Tensor:  # gradients of the weights
        return f @ e

    def to_encoder(self, u: Tensor, h: Tensor) -> Tensor:
        return u.mT @ h.mT


def closed_form(
    arch: str, fuse: Callable = lambda f: f, choose: Callable | None = None, **switches
) -> Callable[..., Gradients] | None:
    """The gradient function of `arch` with its switches, or None where only autograd knows it.

    `fuse` wraps each element-wise part (`torch.compile`, or nothing). `choose` takes the encoder's
    product and the bias that opens a latent and returns the way to multiply
    (`gsae.training.sparse_products.chooser`); `Dense` where there is none. The function takes
    parameters with any leading dimensions, `x: (batch, n)`, `lam` broadcast over `(…, 1, 1)` and
    the dtype of the products, and returns gradients (those of matrices in that dtype), loss terms
    and statistics as `losses(…, return_stats=True)` does, terms and `l0` of the leading dimensions'
    shape.
    """
    make = {"gated": gated, "baseline": baseline}.get(arch)
    dense = Dense(fuse)
    return (
        make(fuse, choose or (lambda p, bias: dense), **switches)
        if make and switches.get("step", True)
        else None
    )


def statistics(on: Tensor, batch: int, error: Tensor) -> dict[str, Tensor]:
    return {"fired": on > 0, "l0": on.sum(-1) / batch, "error": error}


def through(W: Tensor, h_sum: Tensor) -> Tensor:
    return (W @ column(h_sum)).squeeze(-1)


def gated(
    fuse: Callable,
    choose: Callable,
    tie="r_mag",
    freeze="both",
    auxiliary=True,
    step=True,
    centre_grad=True,
    magnitude_l1=False,
) -> Callable[..., Gradients]:
    errors_of = fuse(errors)

    def gradients(w: dict[str, Tensor], x: Tensor, lam: Tensor, dtype: torch.dtype) -> Gradients:
        batch, W_gate, W_dec = x.shape[0], w["W_gate"].to(dtype), w["W_dec"].to(dtype)
        r_mag = w["r_mag"] if tie == "r_mag" else torch.zeros_like(w["b_mag"])
        u = (x - w["b_dec"].unsqueeze(-2)).to(dtype)
        p = W_gate.mT @ u.mT
        at = choose(p, w["b_gate"])
        vectors = at.spread(w["b_gate"], r_mag, w["b_mag"])
        p = q = at.pick(p)
        if tie == "none":
            q = at.encode(w["W_mag"].to(dtype), u)
        f, a, penalised, on = at.fuse(gated_codes)(p, q, *vectors, magnitude_l1, dtype)
        e, e_sum, error = errors_of(at.decode(f, W_dec), w["b_dec"], x, dtype)
        sparsity = penalised.sum(-1) / batch
        terms = {
            "reconstruction": error.mean(-1),
            "sparsity": lam.reshape(sparsity.shape) * sparsity,
        }
        g_aux = None
        if auxiliary:
            e_aux, e_aux_sum, error_aux = errors_of(at.decode(a, W_dec), w["b_dec"], x, dtype)
            terms["auxiliary"], g_aux = error_aux.mean(-1), at.back(W_dec, e_aux)
        h, h_mag, *sums = at.fuse(gated_back)(
            p, q, at.back(W_dec, e), g_aux, *vectors, lam / batch, magnitude_l1, dtype
        )
        b_gate, b_mag, g_r, on = at.sums(*sums, on)
        grads = {"b_gate": b_gate, "b_mag": b_mag, "b_dec": e_sum}
        grads |= {"W_gate": at.to_encoder(u, h), "W_dec": at.to_decoder(f, e)}
        at_p, at_q = b_gate, b_mag * r_mag.exp()
        if tie == "r_mag":
            grads["r_mag"] = g_r
        if tie == "none":
            grads["W_mag"] = at.to_encoder(u, h_mag)
        if auxiliary and freeze in ("none", "b_dec"):
            grads["W_dec"] = grads["W_dec"] + at.to_decoder(a, e_aux)
        if auxiliary and freeze in ("none", "W_dec"):
            grads["b_dec"] = grads["b_dec"] + e_aux_sum
        if (
            centre_grad
        ):  # as the encoder's centring, b_dec feels all that reaches the pre-activations
            grads["b_dec"] = grads["b_dec"] - through(
                w["W_gate"], at_p if tie == "none" else at_p + at_q
            )
            if tie == "none":
                grads["b_dec"] = grads["b_dec"] - through(w["W_mag"], at_q)
        return grads, terms, statistics(on, batch, error)

    return gradients


def baseline(fuse: Callable, choose: Callable) -> Callable[..., Gradients]:
    errors_of = fuse(errors)

    def gradients(w: dict[str, Tensor], x: Tensor, lam: Tensor, dtype: torch.dtype) -> Gradients:
        batch, W_enc, W_dec = x.shape[0], w["W_enc"].to(dtype), w["W_dec"].to(dtype)
        u = (x - w["b_dec"].unsqueeze(-2)).to(dtype)
        p = W_enc.mT @ u.mT
        at = choose(p, w["b_enc"])
        (b_enc,), p = at.spread(w["b_enc"]), at.pick(p)
        f, f_sum, on = at.fuse(baseline_codes)(p, b_enc, dtype)
        e, e_sum, error = errors_of(at.decode(f, W_dec), w["b_dec"], x, dtype)
        h, b_enc = at.fuse(baseline_back)(p, at.back(W_dec, e), b_enc, lam / batch, dtype)
        b_enc, on = at.sums(b_enc, on)
        grads = {
            "W_dec": at.to_decoder(f, e),
            "b_dec": e_sum - through(w["W_enc"], b_enc),
            "W_enc": at.to_encoder(u, h),
            "b_enc": b_enc,
        }
        sparsity = f_sum.sum(-1) / batch
        terms = {
            "reconstruction": error.mean(-1),
            "sparsity": lam.reshape(sparsity.shape) * sparsity,
        }
        return grads, terms, statistics(on, batch, error)

    return gradients
