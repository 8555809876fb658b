"""The paper's Gated SAE (section 3.2), with its ablation arms and ours as switches."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gsae.saes.base import SAE

TIES = ("r_mag", "shared", "none")
FREEZES = ("both", "W_dec", "b_dec", "none")


class GatedSAE(SAE):
    """Gated SAE (Eqs 6 to 8). The gate decides which latents are on, the magnitude path how
    strongly.

    Parameters: `W_gate: (n, M)`, `b_gate, b_mag, r_mag: (M,)`, `W_dec: (M, n)`, `b_dec: (n,)`;
    `W_mag: (n, M)` in place of `r_mag` when untied. The defaults are the paper's; every other value
    is an ablation.

    This class defines the losses. Training uses their gradients derived by hand in
    `gsae.training.closed_form.Gated`, which tests compare with autograd's; only the arm with
    `step=False` trains by autograd.

    Args:
        tie: "r_mag", the paper's `W_mag = exp(r_mag) * W_gate` (Eq. 7); "shared", the same without
            `r_mag`; "none", a free `W_mag`.
        freeze: what the auxiliary decode holds constant: "both" (the paper), "W_dec", "b_dec", or
            "none" (the paper's unfrozen arm).
        auxiliary: whether the loss has its auxiliary term.
        step: False decodes `exp(r_mag) * relu(pi_gate)`, the gate path without the step function;
            `b_mag` is then unused.
        centre_grad: False detaches the `b_dec` that centres the encoder's input.
        magnitude_l1: True adds `lam * |f|_1` on the magnitudes.

    Raises:
        ValueError: on an unknown `tie` or `freeze`.
    """

    ENCODER = "W_gate"
    LATENT = ("b_gate", "b_mag", "r_mag")
    switches = ("tie", "freeze", "auxiliary", "step", "centre_grad", "magnitude_l1")

    def __init__(
        self,
        n: int,
        M: int,
        seed: int = 0,
        *,
        tie: Literal["r_mag", "shared", "none"] = "r_mag",
        freeze: Literal["both", "W_dec", "b_dec", "none"] = "both",
        auxiliary: bool = True,
        step: bool = True,
        centre_grad: bool = True,
        magnitude_l1: bool = False,
    ):
        super().__init__(n, M, seed)
        if tie not in TIES:
            raise ValueError(f"tie must be one of {', '.join(TIES)}, got {tie!r}")
        if freeze not in FREEZES:
            raise ValueError(f"freeze must be one of {', '.join(FREEZES)}, got {freeze!r}")
        self.tie, self.freeze, self.auxiliary = tie, freeze, auxiliary
        self.step, self.centre_grad, self.magnitude_l1 = step, centre_grad, magnitude_l1
        self.W_gate = nn.Parameter(self.W_dec.detach().T.contiguous())
        self.b_gate = nn.Parameter(torch.zeros(M))
        self.b_mag = nn.Parameter(torch.zeros(M))
        if tie == "r_mag":
            self.r_mag = nn.Parameter(torch.zeros(M))
        if tie == "none":
            self.W_mag = nn.Parameter(self.W_dec.detach().T.contiguous())

    def paths(self, x: Float[Tensor, "*b n"]) -> tuple[Tensor, Tensor]:
        """Pre-activations `pi_gate, pi_mag: (..., M)` of the two paths (Eqs 6, 7). Tied, both cost
        one product.
        """
        u = x - (self.b_dec if self.centre_grad else self.b_dec.detach())
        pre = self.mm(u, self.W_gate)
        if self.tie == "none":
            return pre + self.b_gate, self.mm(u, self.W_mag) + self.b_mag
        scaled = pre * self.r_mag.exp() if self.tie == "r_mag" else pre  # Eq. 7
        return pre + self.b_gate, scaled + self.b_mag

    def gated(self, pi_gate: Tensor, pi_mag: Tensor) -> Tensor:
        """Activations from the two paths (Eq. 6); a pre-activation of exactly 0 is a closed
        gate.
        """
        if self.step:
            return (pi_gate > 0) * torch.relu(pi_mag)  # Eq. 6
        relu_gate = torch.relu(pi_gate)
        return relu_gate * self.r_mag.exp() if self.tie == "r_mag" else relu_gate

    def encode(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b M"]:
        """Latent activations, `f >= 0` (Eq. 6)."""
        return self.gated(*self.paths(x))

    def decode_frozen(self, f: Float[Tensor, "*b M"]) -> Float[Tensor, "*b n"]:
        """The decode of the auxiliary term: `W_dec` and `b_dec` as constants, unless an ablation
        frees one.
        """
        W_dec = self.W_dec.detach() if self.freeze in ("both", "W_dec") else self.W_dec
        b_dec = self.b_dec.detach() if self.freeze in ("both", "b_dec") else self.b_dec
        return self.mm(f, W_dec) + b_dec

    def losses(self, x: Float[Tensor, "b n"], lam: float | Tensor, return_stats: bool = False):
        """The terms of Eq. 8, each a mean over the batch; their sum is the objective.

        With `return_stats`, also detached `fired: (M,)` bool, `l0` and `error: (batch,)`, the
        squared error.
        """
        pi_gate, pi_mag = self.paths(x)
        f, relu_gate = self.gated(pi_gate, pi_mag), torch.relu(pi_gate)
        error = (self.decode(f) - x).square().sum(-1)  # D2
        sparsity = relu_gate.sum(-1)
        if self.magnitude_l1:
            sparsity = sparsity + f.sum(-1)
        terms = {"reconstruction": error.mean(), "sparsity": lam * sparsity.mean()}  # Eq. 8
        if self.auxiliary:
            terms["auxiliary"] = (self.decode_frozen(relu_gate) - x).square().sum(-1).mean()
        if not return_stats:
            return terms
        on = f.detach() > 0
        return terms, {"fired": on.any(0), "l0": on.sum(-1).float().mean(), "error": error.detach()}
