"""After training: rescale & shift of a frozen baseline (section 5.2, Fig. 9), and small activations
pruned.
"""

import copy
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from gsae.saes import SAE, BaselineSAE
from gsae.training.adam import adam
from gsae.training.divergence import Diverged
from gsae.training.reader import Batches

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Posthoc(nn.Module):
    """A frozen SAE whose activations are changed afterwards; encodes and decodes as an `SAE`
    does.
    """

    def __init__(self, sae: SAE):
        super().__init__()
        self.sae = copy.deepcopy(sae).eval().requires_grad_(False)

    @property
    def b_dec(self) -> Tensor:
        return self.sae.b_dec

    @property
    def W_dec(self) -> Tensor:
        return self.sae.W_dec

    def decode(self, f: Float[Tensor, "*b M"]) -> Float[Tensor, "*b n"]:
        """The frozen SAE's reconstruction (Eq. 3)."""
        return self.sae.decode(f)

    def forward(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
        return self.decode(self.encode(x))

    def encode(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b M"]:
        raise NotImplementedError


class Pruned(Posthoc):
    """An SAE whose activations at or below one threshold are set to 0.

    One threshold serves all latents, in units of the activations: rows of the dictionary are unit
    vectors, so `f_i` is the length of what latent `i` adds to the reconstruction, and a global
    threshold removes first what matters least to the squared error. A threshold relative to each
    latent's own scale would spare the faint latents, whose activations cost L0 as any other's. A
    threshold of 0 is the SAE itself.
    """

    def __init__(self, sae: SAE, threshold: float):
        if threshold < 0:
            raise ValueError(f"the threshold is an activation, at least 0, got {threshold}")
        super().__init__(sae)
        self.threshold = float(threshold)

    def encode(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b M"]:
        """The SAE's activations above the threshold, 0 elsewhere."""
        f = self.sae.encode(x)
        return f * (f > self.threshold)

    def summary(self) -> dict[str, float]:
        """What a result file keeps of it."""
        return {"threshold": self.threshold}


class RescaleShift(Posthoc):
    """A frozen baseline SAE with a new scale and bias for each latent's magnitude (section 5.2,
    Fig. 9).

    `1[f_i > threshold] * relu(exp(r_mag) * (x - b_dec) @ W_enc + b_mag)`, with `f` the baseline's
    own activations: encoder, support, dictionary and `b_dec` stay as they are. It starts at `r_mag
    = 0`, `b_mag = b_enc`, which is the baseline exactly. A latent of the support may be turned off
    by its new magnitude, never one outside turned on, so L0 can fall and has to be measured anew.

    Args:
        sae: the baseline; a copy is kept.
        threshold: 0 keeps the baseline's support; above, that of `Pruned(sae, threshold)`.

    Raises:
        TypeError: when `sae` is no BaselineSAE.
    """

    def __init__(self, sae: BaselineSAE, threshold: float = 0.0):
        if not isinstance(sae, BaselineSAE):
            raise TypeError(
                f"rescale & shift is defined for a BaselineSAE, got {type(sae).__name__}"
            )
        if threshold < 0:
            raise ValueError(f"the threshold is an activation, at least 0, got {threshold}")
        super().__init__(sae)
        self.threshold = float(threshold)
        self.r_mag = nn.Parameter(torch.zeros_like(self.sae.b_enc))
        self.b_mag = nn.Parameter(self.sae.b_enc.detach().clone())

    def paths(self, x: Float[Tensor, "*b n"]) -> tuple[Tensor, Tensor]:
        """The frozen pre-activation without its bias, and whether each latent is in the support."""
        pre = self.sae.mm(x - self.sae.b_dec, self.sae.W_enc)
        return pre, pre + self.sae.b_enc > self.threshold

    def encode(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b M"]:
        """Activations with the frozen support and the new magnitudes."""
        pre, on = self.paths(x)
        return on * torch.relu(self.r_mag.exp() * pre + self.b_mag)

    def summary(self) -> dict[str, float | list[float]]:
        """What a result file keeps of it: quantiles of `r_mag` and of the shift `b_mag - b_enc`
        over the latents that were moved (a latent that never fired keeps its start)."""
        r, shift = self.r_mag.detach(), (self.b_mag - self.sae.b_enc).detach()
        moved = (r != 0) | (shift != 0)
        levels = torch.tensor(LEVELS, dtype=torch.float64)
        summary = {
            "threshold": self.threshold,
            "moved_fraction": float(moved.double().mean()),
            "quantile_levels": [*LEVELS],
        }
        for name, values in (("r_mag", r), ("b_shift", shift)):
            kept = values[moved].double().cpu()
            if not len(kept):
                kept = torch.zeros(1, dtype=torch.float64)
            summary[f"{name}_mean"] = float(kept.mean())
            summary[f"{name}_quantiles"] = kept.quantile(levels).tolist()
        return summary


@torch.no_grad()
def gradients(model: RescaleShift, x: Float[Tensor, "b n"]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the mean squared error at `r_mag` and `b_mag`, by hand, and the error: three
    dense products.
    """
    sae = model.sae
    pre, on = model.paths(x)
    scale = model.r_mag.exp()
    magnitude = scale * pre + model.b_mag
    on &= magnitude > 0
    error = sae.decode(on * magnitude) - x
    grad_magnitude = sae.mm(error * (2 / len(x)), sae.W_dec.T) * on
    grad_r_mag = (grad_magnitude * pre).sum(0) * scale
    return grad_r_mag, grad_magnitude.sum(0), error.square().sum(-1).mean()


@torch.no_grad()
def rescale_shift(
    sae: BaselineSAE,
    batches: Batches,
    steps: int = 500,
    lr: float = 5e-3,
    *,
    threshold: float = 0.0,
    decay: float = 0.5,
    bar: bool | None = None,
) -> RescaleShift:
    """Train `RescaleShift` on reconstruction alone, in float32; deterministic, and `sae` is left as
    it was.

    At the optimum no common factor on the activations helps, so gamma about the frozen `b_dec` is
    1; gamma itself (Eq. 9, about 0) is near 1 as far as `b_dec` is near 0 or the baseline near
    unbiased.

    Args:
        sae: the frozen baseline.
        batches: `step -> (batch, n)`, float32 activations as the baseline was trained on.
        steps: of Adam with betas (0, 0.999), as everywhere (D18).
        lr: falls linearly to 0 over the last `decay` of the steps.
        threshold: of the support, see `RescaleShift`.

    Raises:
        Diverged: when the error is not finite.
    """
    model = RescaleShift(sae, threshold)
    device = model.b_dec.device
    state = [(p.data, torch.zeros_like(p)) for p in (model.r_mag, model.b_mag)]
    hidden = None if bar is None else not bar
    for step in tqdm(range(steps), desc="rescale & shift", unit="step", disable=hidden):
        *grads, error = gradients(model, batches(step).to(device))
        if not error.isfinite():
            raise Diverged(
                f"rescale & shift, step {step}: the error is {float(error)}; lower lr, now {lr:g}"
            )
        rate = torch.tensor(lr * min(1.0, (steps - step) / max(1.0, decay * steps)), device=device)
        age = torch.tensor(step + 1.0, device=device)
        for (p, v), g in zip(state, grads, strict=True):
            adam(p, g, v, age, rate)
    return model


@torch.no_grad()
def pruning_threshold(sae: SAE, batches: Iterable[Tensor], *, increase: float) -> float:
    """The threshold of `Pruned` that, on training batches, costs a stated share of the squared
    error.

    Args:
        sae: any SAE.
        batches: a few `(batch, n)` tensors of training activations (never of the evaluation set).
        increase: relative increase of the mean squared error to allow, say 0.01. The largest
            threshold within it is found by bisection, to 0.01 of L0; the error is taken to rise
            with the threshold, as it does once trained.

    Raises:
        ValueError: where `increase` is not above 0, or there are no batches.
    """
    if not increase > 0:
        raise ValueError(f"increase is a share of the error, above 0, got {increase}")
    data = [x.to(sae.b_dec.device) for x in batches]
    if not data:
        raise ValueError("the threshold is chosen on training batches: give at least one")
    codes = [sae.encode(x) for x in data]
    values = torch.cat([f[f > 0] for f in codes]).sort(descending=True).values
    tokens = sum(map(len, data))

    def error(threshold: float) -> float:
        pairs = zip(codes, data, strict=True)
        return sum(float((sae.decode(f * (f > threshold)) - x).square().sum()) for f, x in pairs)

    allowed = error(0.0) * (1 + increase)
    # Keeping the `high` largest is within the allowance, keeping `low` is taken not to be.
    low, high = 0, len(values)
    while high - low > max(1, tokens // 100):  # to 0.01 of L0
        middle = (low + high) // 2
        if error(float(values[middle])) <= allowed:
            high = middle
        else:
            low = middle
    return float(values[high]) if high < len(values) else 0.0
