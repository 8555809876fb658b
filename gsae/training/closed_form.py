"""Hand-derived gradients of Eq. 8 and Eq. 4: the code that trains `GatedSAE` and `BaselineSAE`.

The classes define the losses; this file derives what autograd would find for them, term by term,
and needs seven dense products a step for the Gated SAE (14 n M operations a sample) and five for
the baseline (10 n M). Tests compare every gradient with the classes'. The letters are those
of section 3.2. Latents by samples, `(M, batch)`, so that every sum over the batch runs along
memory, which makes the element-wise parts ten times as fast on CPUs:

    pre         W_gate.T u.T; one product for both paths where W_mag = exp(r_mag) W_gate (Eq. 7)
    pre_mag     what the magnitude path reads: `pre` itself, or W_mag.T u.T where it is untied
    pi_gate     pre + b_gate;  f_gate = 1[pi_gate > 0]
    pi_mag      exp(r_mag) pre_mag + b_mag
    f           f_gate ReLU(pi_mag) (Eq. 6)
    relu_gate   ReLU(pi_gate), which Eq. 8 penalises and decodes a second time
    back        W_dec error.T, the reconstruction's derivative by f;  back_aux, the auxiliary
                term's by relu_gate
    grad_*      the derivative of the loss by *

Samples first, `(batch, n)`:

    u           x - b_dec, what both paths read
    error       (2 / batch) (f.T W_dec + b_dec - x), the reconstruction's derivative by its decode;
                error_aux, the same of relu_gate

Products are in bfloat16 where asked, everything else in float32; `torch.compile` fuses the
element-wise parts between products. The code is written for any leading dimensions
of the parameters, and for two ways to multiply: `dense_products.Dense`, and
`sparse_products.Open` where few latents are on.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gsae.training.dense_products import Dense, column

Tensors = dict[str, Tensor]
Gradients = tuple[Tensors, Tensors, Tensors]  # by parameter, then loss terms, then statistics


def gated_codes(pre, pre_mag, b_gate, r_mag, b_mag, magnitude_l1, dtype):
    """What both decodes take, f (Eq. 6) and relu_gate; per latent, the penalised sum over the batch
    and on how many samples it is on.
    """
    pi_gate = pre.float() + column(b_gate)
    pi_mag = pre_mag.float() * column(r_mag.exp()) + column(b_mag)  # Eq. 7
    relu_gate = torch.relu(pi_gate)
    f = torch.relu(pi_mag) * (pi_gate > 0)  # Eq. 6
    penalised = relu_gate + f if magnitude_l1 else relu_gate
    return f.to(dtype), relu_gate.to(dtype), penalised.sum(-1), (f > 0).float().sum(-1)


def gated_back(pre, pre_mag, back, back_aux, b_gate, r_mag, b_mag, penalty, magnitude_l1, dtype):
    """From the errors brought back to the gradients at `pre`, at `pre_mag` where the paths are
    untied (else None, and `pre` has both), and, summed over the batch, at pi_gate, pi_mag and
    r_mag. The pre-activations are made again: keeping them would cost memory traffic.
    """
    tied = pre_mag is pre  # the same tensor where one product serves both paths
    scale = column(r_mag.exp())
    pre, pre_mag, grad_f = pre.float(), pre_mag.float(), back.float()
    f_gate = pre + column(b_gate) > 0
    f_mag_on = pre_mag * scale + column(b_mag) > 0

    # Of the two pre-activations the reconstruction reaches pi_mag alone, where the latent is on:
    # the step function passes no gradient to pi_gate (section 3.2).
    if magnitude_l1:
        grad_f = grad_f + penalty
    grad_pi_mag = grad_f * (f_gate & f_mag_on)

    # The penalty and the auxiliary error reach pi_gate alone, through relu_gate, where it is open.
    grad_relu_gate = penalty if back_aux is None else back_aux.float() + penalty
    grad_pi_gate = grad_relu_gate * f_gate

    if tied:  # the paths meet in the gradient of their one product
        grad_pre, grad_pre_mag = (grad_pi_gate + grad_pi_mag * scale).to(dtype), None
    else:
        grad_pre, grad_pre_mag = grad_pi_gate.to(dtype), (grad_pi_mag * scale).to(dtype)
    grad_r_mag = (grad_pi_mag * pre_mag).sum(-1) * r_mag.exp()
    return grad_pre, grad_pre_mag, grad_pi_gate.sum(-1), grad_pi_mag.sum(-1), grad_r_mag


def baseline_codes(pre, b_enc, dtype):
    """f (Eq. 2); per latent, its sum over the batch and on how many samples it is on."""
    f = torch.relu(pre.float() + column(b_enc))  # Eq. 2
    return f.to(dtype), f.sum(-1), (f > 0).float().sum(-1)


def baseline_back(pre, back, b_enc, penalty, dtype):
    """The gradient at `pre`, and its sum over the batch, which is that at b_enc."""
    grad_pre = (back.float() + penalty) * (pre.float() + column(b_enc) > 0)
    return grad_pre.to(dtype), grad_pre.sum(-1)


def errors(decoded, b_dec, x, dtype):
    """The error of one decode, times 2 / batch as its squared mean's gradient has it; its sum over
    the batch, which is the gradient at b_dec; and its squared norm, sample by sample.
    """
    error = decoded.float() + b_dec.unsqueeze(-2) - x
    factor = 2 / x.shape[-2]
    return (error * factor).to(dtype), error.sum(-2) * factor, error.square().sum(-1)


def closed_form(
    arch: str,
    fuse: Callable = lambda part: part,
    choose: Callable | None = None,
    **switches,
) -> Callable[..., Gradients] | None:
    """The gradient function of `arch` with its switches, or None where only autograd knows it.

    The function takes parameters with any leading dimensions, `x: (batch, n)`, `lam` broadcast over
    `(…, 1, 1)` and the dtype of the products, and returns gradients (those of matrices in that
    dtype), loss terms and statistics as `losses(…, return_stats=True)` does, terms and `l0` of the
    leading dimensions' shape.

    Args:
        fuse: wraps each element-wise part: `torch.compile`, or nothing.
        choose: takes the encoder's product and the bias that opens a latent and returns the way to
            multiply (`gsae.training.sparse_products.chooser`); `Dense` where there is none.
    """
    forms = {"gated": Gated, "baseline": Baseline}
    if arch not in forms or not switches.get("step", True):
        return None
    dense = Dense(fuse)
    return forms[arch](fuse, choose or (lambda pre, bias: dense), **switches)


class Gated:
    """Gradients of Eq. 8 at every parameter of a `GatedSAE` with these switches."""

    def __init__(
        self,
        fuse: Callable,
        choose: Callable,
        tie="r_mag",
        freeze="both",
        auxiliary=True,
        step=True,  # always: see closed_form
        centre_grad=True,
        magnitude_l1=False,
    ):
        self.errors, self.choose = fuse(errors), choose
        self.tie, self.auxiliary, self.magnitude_l1 = tie, auxiliary, magnitude_l1
        self.centre_grad = centre_grad
        # The paper's auxiliary decode holds both constant; an arm that frees one trains it too.
        self.aux_trains_W_dec = auxiliary and freeze in ("none", "b_dec")
        self.aux_trains_b_dec = auxiliary and freeze in ("none", "W_dec")

    def __call__(self, w: Tensors, x: Tensor, lam: Tensor, dtype: torch.dtype) -> Gradients:
        batch, b_dec = x.shape[0], w["b_dec"]
        W_gate, W_dec = w["W_gate"].to(dtype), w["W_dec"].to(dtype)
        r_mag = w["r_mag"] if self.tie == "r_mag" else torch.zeros_like(w["b_mag"])

        # Product 1, encode: the gate's pre-activation, and tied also the magnitudes' (Eq. 7).
        u = (x - b_dec.unsqueeze(-2)).to(dtype)
        pre = W_gate.mT @ u.mT
        way = self.choose(pre, w["b_gate"])
        vectors = way.spread(w["b_gate"], r_mag, w["b_mag"])
        pre = pre_mag = way.pick(pre)
        if self.tie == "none":  # an eighth product, and a ninth for its gradient below
            pre_mag = way.encode(w["W_mag"].to(dtype), u)
        codes = way.fuse(gated_codes)(pre, pre_mag, *vectors, self.magnitude_l1, dtype)
        f, relu_gate, penalised, on = codes

        # Product 2, decode f: the reconstruction. The sparsity comes from the codes above.
        error, error_at_b_dec, squared = self.errors(way.decode(f, W_dec), b_dec, x, dtype)
        terms = two_terms(squared, penalised, lam)

        # Products 3 and 4: decode relu_gate, the auxiliary term, and bring its error back.
        error_aux = back_aux = aux_at_b_dec = None
        if self.auxiliary:
            decode_aux = self.errors(way.decode(relu_gate, W_dec), b_dec, x, dtype)
            error_aux, aux_at_b_dec, squared_aux = decode_aux
            terms["auxiliary"] = squared_aux.mean(-1)
            back_aux = way.back(W_dec, error_aux)

        # Product 5, the reconstruction error back (not named: named, it would outlive its use).
        grad_pre, grad_pre_mag, *sums = way.fuse(gated_back)(
            pre, pre_mag, way.back(W_dec, error), back_aux, *vectors,
            lam / batch, self.magnitude_l1, dtype,
        )  # fmt: skip
        grad_b_gate, grad_b_mag, grad_r_mag, on = way.sums(*sums, on)

        # Products 6 and 7: the gradients at the matrices.
        grads = {"b_gate": grad_b_gate, "b_mag": grad_b_mag, "b_dec": error_at_b_dec}
        grads["W_gate"] = way.to_encoder(u, grad_pre)
        grads["W_dec"] = way.to_decoder(f, error)
        if self.tie == "r_mag":
            grads["r_mag"] = grad_r_mag
        if self.tie == "none":
            grads["W_mag"] = way.to_encoder(u, grad_pre_mag)
        if self.aux_trains_W_dec:
            grads["W_dec"] = grads["W_dec"] + way.to_decoder(relu_gate, error_aux)
        if self.aux_trains_b_dec:
            grads["b_dec"] = grads["b_dec"] + aux_at_b_dec
        if self.centre_grad:
            self.centre(grads, w, r_mag)
        return grads, terms, statistics(on, batch, squared)

    def centre(self, grads: Tensors, w: Tensors, r_mag: Tensor) -> None:
        """b_dec also centres what the encoder reads (Eq. 6): it feels, with the other sign, all
        that reaches the pre-activations. One product with a vector, not counted above.
        """
        at_pre, at_pre_mag = grads["b_gate"], grads["b_mag"] * r_mag.exp()
        if self.tie == "none":
            grads["b_dec"] = grads["b_dec"] - through(w["W_gate"], at_pre)
            grads["b_dec"] = grads["b_dec"] - through(w["W_mag"], at_pre_mag)
        else:
            grads["b_dec"] = grads["b_dec"] - through(w["W_gate"], at_pre + at_pre_mag)


class Baseline:
    """Gradients of Eq. 4 at every parameter of a `BaselineSAE`."""

    def __init__(self, fuse: Callable, choose: Callable):
        self.errors, self.choose = fuse(errors), choose

    def __call__(self, w: Tensors, x: Tensor, lam: Tensor, dtype: torch.dtype) -> Gradients:
        batch, b_dec = x.shape[0], w["b_dec"]
        W_enc, W_dec = w["W_enc"].to(dtype), w["W_dec"].to(dtype)

        # Product 1, encode (Eq. 2).
        u = (x - b_dec.unsqueeze(-2)).to(dtype)
        pre = W_enc.mT @ u.mT
        way = self.choose(pre, w["b_enc"])
        (b_enc,) = way.spread(w["b_enc"])
        pre = way.pick(pre)
        f, f_sum, on = way.fuse(baseline_codes)(pre, b_enc, dtype)

        # Product 2, decode: the reconstruction of Eq. 4. The sparsity comes from the codes above.
        error, error_at_b_dec, squared = self.errors(way.decode(f, W_dec), b_dec, x, dtype)
        terms = two_terms(squared, f_sum, lam)

        # Product 3, the error back.
        grad_pre, grad_b_enc = way.fuse(baseline_back)(
            pre, way.back(W_dec, error), b_enc, lam / batch, dtype
        )
        grad_b_enc, on = way.sums(grad_b_enc, on)

        # Products 4 and 5: the gradients at the matrices. b_dec centres the encoder's input too.
        grads = {
            "W_dec": way.to_decoder(f, error),
            "b_dec": error_at_b_dec - through(w["W_enc"], grad_b_enc),
            "W_enc": way.to_encoder(u, grad_pre),
            "b_enc": grad_b_enc,
        }
        return grads, terms, statistics(on, batch, squared)


def two_terms(squared: Tensor, penalised: Tensor, lam: Tensor) -> Tensors:
    """Reconstruction and sparsity, means over the batch (Eqs 4, 8), from the squared errors by
    sample and the penalised sums by latent.
    """
    sparsity = penalised.sum(-1) / squared.shape[-1]
    return {
        "reconstruction": squared.mean(-1),
        "sparsity": lam.reshape(sparsity.shape) * sparsity,
    }


def through(W: Tensor, grad_pre_sum: Tensor) -> Tensor:
    """What a gradient at the pre-activations, summed over the batch, is at their input."""
    return (W @ column(grad_pre_sum)).squeeze(-1)


def statistics(on: Tensor, batch: int, squared: Tensor) -> Tensors:
    return {"fired": on > 0, "l0": on.sum(-1) / batch, "error": squared}
