"""The known dictionary (ours, not in the paper): both architectures on sparse data whose truth is
known.

Over the sparsity and the noise of the data, and seeds: how near each dictionary comes to the true
one, and how the estimated magnitudes relate to the true ones. A second use of
gsae.saes.toy.SparseData, recorded as result files.
"""

import os
import sys
import time
from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from gsae.evidence import provenance, result_files
from gsae.evidence import run as sweeps
from gsae.experiments.follow_ups import EXPERIMENT, GRID, grid
from gsae.saes import SAE
from gsae.saes.toy import SparseData
from gsae.training import loop

GRID |= {"gpu": GRID["cpu"], "paper": GRID["cpu"]}
HELD_OUT = 20_000
FOUND = 0.9  # a true direction is found where its latent's cosine is above this


def match(
    dictionary: Float[Tensor, "features n"], W_dec: Float[Tensor, "M n"]
) -> tuple[Int[Tensor, " k"], ...]:
    """The one-to-one matching of true directions and unit learned rows with the largest sum of
    cosines (Hungarian).

    Returns true indices and learned indices, `min(features, M)` each.
    """
    pairs = linear_sum_assignment((dictionary @ W_dec.T).cpu().numpy(), maximize=True)
    return tuple(torch.as_tensor(p) for p in pairs)


@torch.no_grad()
def recovery(
    sae: SAE, data: SparseData, x: Float[Tensor, "b n"], magnitudes: Float[Tensor, "b features"]
) -> dict[str, float]:
    """How well an SAE recovered the truth behind samples `x` of `data`.

    Returns:
        `cosine_max`: mean over true directions of the largest cosine to a learned row; `cosine`:
            the mean under the
        one-to-one matching; `found`: share of true directions whose matched cosine is above 0.9;
        `slope`: of the estimated on the true magnitude where both are above 0, least squares
            through the origin, pooled over the
        directions found (1 without shrinkage); `offset_slope`: the same with an intercept;
        `magnitude_gamma`: Eq. 10 of the magnitudes, 1 where no common factor brings estimated
            nearer to true ones; over
        all samples of the directions found, so that latents on falsely raise it;
        `recall`, `precision`: of being on, over the directions found; `gamma` (Eq. 10), `l0`,
            `mse`.
        What is undefined, as a slope where nothing is found, is left out.
    """
    f = sae.encode(x)
    x_hat, cosines = sae.decode(f), data.dictionary @ sae.W_dec.T
    true, latent = match(data.dictionary, sae.W_dec)
    matched = cosines[true, latent]
    found = matched > FOUND
    y, t = f[:, latent[found]].double(), magnitudes[:, true[found]].double()
    both = (y > 0) & (t > 0)
    ys, ts = y[both], t[both]
    share = lambda a, b: float(a / b) if b > 0 else None
    centred = ts - ts.mean() if len(ts) else ts
    out = {
        "cosine_max": float(cosines.max(1).values.mean()),
        "cosine": float(matched.mean()),
        "found": float(found.double().mean()),
        "slope": share((ys * ts).sum(), ts.square().sum()),
        "offset_slope": share((ys * centred).sum(), centred.square().sum()),
        "magnitude_gamma": share(y.square().sum(), (y * t).sum()),
        "recall": share(both.sum(), (t > 0).sum()),
        "precision": share(both.sum(), (y > 0).sum()),
        "gamma": share(x_hat.double().square().sum(), (x_hat * x).double().sum()),  # Eq. 10
        "l0": float((f > 0).double().sum(-1).mean()),
        "mse": float((x_hat - x).double().square().sum(-1).mean()),
    }
    return {k: v for k, v in out.items() if v is not None}


def compute(cell: list[Mapping]) -> list[dict[str, float]]:
    """Train the SAEs of one cell, which differ in lambda alone, on one sample, and measure each on
    a held-out one.

    A seed moves the data's dictionary, its samples, the initial dictionary and the order of the
    batches, the same way for both architectures.
    """
    one = cell[0]
    data = SparseData(
        one["n"], one["features"], one["data_l0"], noise=one["noise"], seed=one["seed"]
    )
    x, _ = data.sample(one["tokens"], seed=2 * one["seed"])
    lams = [float(s["lam"]) for s in cell]
    options = {k: one[k] for k in ("seed", "batch", "lr")}
    saes = loop.train(x, one["arch"], lams, one["M"], **options, bar=False)
    unseen, magnitudes = data.sample(HELD_OUT, seed=2 * one["seed"] + 1)
    scale = saes[0].about["scale"]
    return [recovery(sae, data, unseen * scale, magnitudes * scale) for sae in saes]


def run(scale: str | None = None, *, force: bool = False) -> pd.DataFrame:
    """The known-dictionary study at a scale: reads the results on record and computes those that
    are missing.

    With GSAE_TRAIN=never nothing is computed. Returns one row a result: settings, the values of
    `recovery`, the columns of gsae.evidence.result_files.load_results, and `scale`.

    Raises:
        EvidenceError: where results of a scale other than smoke could not be traced to a commit;
            `force` writes them.
    """
    at = sweeps.scale(scale)
    wanted = grid(at)
    missing = [s for s in wanted if result_files.find_result(EXPERIMENT, s, at) is None]
    print(
        f"{EXPERIMENT} at scale {at}: {len(wanted) - len(missing)} of {len(wanted)} results on "
        "record",
        file=sys.stderr,
    )
    if missing and os.environ.get("GSAE_TRAIN") != "never":
        if at != "smoke" and not force:
            provenance.require_clean()
        cells: dict[tuple, list[dict]] = {}
        for of in missing:
            cells.setdefault(tuple(v for k, v in of.items() if k != "lam"), []).append(of)
        for cell in tqdm(cells.values(), desc="known dictionary", disable=None):
            began = time.monotonic()
            values = compute(cell)
            seconds, device = (
                (time.monotonic() - began) / len(cell),
                "cuda" if torch.cuda.is_available() else "cpu",
            )
            for of, found in zip(cell, values, strict=True):
                result_files.write_result(
                    EXPERIMENT,
                    of,
                    found,
                    provenance.provenance(device, seconds, {}, ""),
                    at,
                    force=force,
                )
    return result_files.load_results(EXPERIMENT, at).assign(scale=at)
