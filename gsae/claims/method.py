"""Judges of what needs no language model: identities, gradients, the toy model, and the cost of a
step.
"""

import json
from statistics import median

import numpy as np
import pandas as pd

from gsae.evidence import run_files
from gsae.evidence.verdict import NOT, NOT_RUN, PARTLY, REPRODUCED, Verdict

# The parameters to which each term of the loss sends no gradient at all.
ZERO = {
    "reconstruction": {"b_gate"},
    "sparsity": {"r_mag", "b_mag", "W_dec"},
    "auxiliary": {"r_mag", "b_mag", "W_dec"},
}
LAMBDAS = (0.1, 0.5, 1.0, 1.5, 2.0, 3.0)  # on both sides of 2
# The largest differences allowed: of descent; of gradients, the derived ones being in single
# precision in part; of activations in double precision; and of shares and errors of a sample.
DESCENT, GRADIENT, ACTIVATION, SAMPLING = 1e-4, 1e-4, 1e-9, 0.01
BY_COUNT = (1.3, 1.5)  # about 1.4
BY_TIME = 1.5


def one_latent(scale: str) -> Verdict:
    """Fig. 2: descent against the analytic optimum, for lambdas on both sides of 2."""
    from gsae.saes import toy

    worst = max(abs(float(toy.descend(lam)[-1]) - float(toy.one_latent(lam))) for lam in LAMBDAS)
    return Verdict(
        REPRODUCED if worst < DESCENT else NOT,
        "largest difference {worst:.1e} over {lambdas} lambdas",
        numbers={"worst": worst, "lambdas": len(LAMBDAS)},
        bounds={"worst": (0, DESCENT)},
    )


def random_gated(n: int, M: int):
    """A tied Gated SAE in double precision whose every parameter is random, and random inputs."""
    import torch

    from gsae.saes import GatedSAE

    generator = torch.Generator().manual_seed(0)
    sae = GatedSAE(n, M).double()
    with torch.no_grad():
        for p in (sae.b_gate, sae.b_mag, sae.r_mag, sae.b_dec):
            p.copy_(torch.randn(p.shape, generator=generator))
    return sae, torch.randn(5000, n, generator=generator, dtype=torch.float64)


def gradients(sae, x, lam: float) -> dict[str, dict]:
    """Term of the loss -> parameter -> its gradient by autograd, None where the term does not reach
    it.
    """
    import torch

    weights = dict(sae.named_parameters())
    by_term = {}
    for term, value in sae.losses(x, lam).items():
        grads = torch.autograd.grad(
            value, list(weights.values()), retain_graph=True, allow_unused=True
        )
        by_term[term] = dict(zip(weights, grads, strict=True))
    return by_term


def parameters(sae) -> int:
    return sum(p.numel() for p in sae.parameters())


def equations(scale: str) -> Verdict:
    """Eqs 6 to 8: parameters, the terms that send exactly no gradient, and the rest against the
    derived gradients.
    """
    import torch

    from gsae.saes import BaselineSAE
    from gsae.training.closed_form import closed_form

    n, M, lam = 5, 11, 0.3
    sae, x = random_gated(n, M)
    extra = parameters(sae) - parameters(BaselineSAE(n, M))
    zeros, total = True, {}
    for term, grads in gradients(sae, x, lam).items():
        nothing = {name for name, grad in grads.items() if grad is None or not grad.any()}
        zeros &= nothing == ZERO[term]
        for name, grad in grads.items():
            total[name] = total.get(name, 0) + (0 if grad is None else grad)
    derived, _, _ = closed_form("gated")(
        dict(sae.state_dict()), x, torch.tensor([[lam]]), torch.float64
    )
    worst = max(float((derived[name] - grad).norm() / grad.norm()) for name, grad in total.items())
    passed = extra == 2 * M and zeros and worst < GRADIENT
    exact = "as the paper has them" if zeros else "not as the paper has them"
    return Verdict(
        REPRODUCED if passed else NOT,
        f"{{extra}} extra parameters at M = {{M}}; zeros of the gradient {exact}; "
        "the rest to {worst:.0e}",
        numbers={"extra": extra, "M": M, "worst": worst},
        bounds={"worst": (0, GRADIENT)},
    )


def jump_relu(scale: str) -> Verdict:
    """Appendix E: a tied Gated SAE with random weights against the JumpReLU SAE of Eq. 16."""
    from gsae.saes import toy

    sae, x = random_gated(20, 50)
    theta = sae.b_mag - sae.r_mag.exp() * sae.b_gate
    z = (x - sae.b_dec) @ (sae.W_gate * sae.r_mag.exp()) + sae.b_mag
    worst = float((sae.encode(x) - toy.jump_relu(z, theta)).detach().abs().max())
    return Verdict(
        REPRODUCED if worst < ACTIVATION else NOT,
        "largest difference {worst:.0e} in {activations:,} activations",
        numbers={"worst": worst, "activations": z.numel()},
        bounds={"worst": (0, ACTIVATION)},
    )


def toy_model(scale: str) -> Verdict:
    """Appendix F: 100,000 samples against the exact values, and the order of the two
    reconstructions.
    """
    from gsae.saes import toy

    z, on = toy.mixture(100_000)
    passing = z > 1
    chosen = z[on & passing]
    share_on, share_off = float(passing[on].float().mean()), float(passing[~on].float().mean())
    relu = float((toy.relu_reconstruction(chosen) - chosen).square().mean())
    jump = float((toy.jump_reconstruction(chosen) - chosen).square().mean())
    exact = toy.passing(True), toy.passing(False), toy.squared_error(1.0, 2.0, 1.0)
    near = np.allclose((share_on, share_off, relu), exact, atol=SAMPLING) and jump < 1e-12
    return Verdict(
        REPRODUCED if near else NOT,
        "share passing {on:.3f} on, {off:.3f} off; "
        "squared error {relu:.3f} ReLU, {jump:.0e} JumpReLU",
        numbers={"on": share_on, "off": share_off, "relu": relu, "jump": jump},
    )


def operations(arch: str, n: int = 64, M: int = 256, batch: int = 32) -> int:
    """Operations of one training step's matrix products, counted while the shipped gradients
    run.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from gsae.saes import ARCHITECTURES
    from gsae.training.closed_form import closed_form

    weights = dict(ARCHITECTURES[arch](n, M).state_dict())
    with FlopCounterMode(display=False) as counter:
        closed_form(arch)(weights, torch.randn(batch, n), torch.tensor([[0.1]]), torch.float32)
    return counter.get_total_flops()


def newest_bench() -> pd.DataFrame:
    """The newest record of `make bench` as a table of one row, empty where there is none."""
    records = {p: json.loads(p.read_text()) for p in run_files.root("bench").glob("*.json")}
    if not records:
        return pd.DataFrame()
    newest = max(records, key=lambda path: records[path]["date"])
    row = {"id": newest.stem, "scale": "bench", "file": newest.name, "status": "done"}
    return pd.DataFrame([row | {"provenance": records[newest]}])


def step_ratios(record: dict) -> list[float]:
    """Time of a gated step over a baseline step of equal width, the median of each shape."""
    rows = [row for row in record["rows"] if row["kind"] == "cost" and row["wider"] == 1]
    return [row["measured"][0] for row in rows if row["measured"]]


def step_cost(scale: str) -> Verdict:
    """Section 4.1: a gated step over a baseline step of equal width, counted here and measured by
    `make bench`.

    The estimate is the median over shapes; reproduced where no shape's own median is above 1.5
    either. (Until the first record the largest of these medians was the estimate, which noise alone
    lifts the higher the more shapes there are.)
    """
    by_count = operations("gated") / operations("baseline")
    bench = newest_bench()
    by_time = step_ratios(bench["provenance"].iloc[0]) if len(bench) else []
    numbers, tables = {"count": by_count}, (bench,)
    if not by_time:
        finding = "{count:.2f} by count; no measured step on record"
        return Verdict(NOT_RUN, finding, numbers=numbers, tables=tables)
    time, least, most = median(by_time), min(by_time), max(by_time)
    numbers |= {"time": time, "least": least, "most": most, "shapes": len(by_time)}
    if time > BY_TIME or not BY_COUNT[0] < by_count < BY_COUNT[1]:
        verdict = NOT
    else:
        verdict = REPRODUCED if most <= BY_TIME else PARTLY
    return Verdict(
        verdict,
        "{count:.2f} by count; by time {time:.2f}, {least:.2f} to {most:.2f} over {shapes} shapes",
        numbers=numbers,
        bounds={"count": BY_COUNT, "most": (0, BY_TIME)},
        tables=tables,
    )
