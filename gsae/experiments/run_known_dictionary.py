"""The known dictionary (ours, not in the paper): both architectures on sparse data whose truth is
known.

Over the sparsity and the noise of the data, and seeds: how near each dictionary comes to the true
one, and how the estimated magnitudes relate to the true ones. A second use of
gsae.saes.toy.SparseData, recorded as result files.
"""

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
from gsae.experiments import records, sweeps
from gsae.experiments.follow_ups import KNOWN, known_settings
from gsae.experiments.grouping import groups
from gsae.saes import SAE
from gsae.saes.toy import SparseData
from gsae.system.devices import training_device
from gsae.training import loop

HELD_OUT = 20_000  # samples that a trained SAE is measured on
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
        `cosine_max`: mean over true directions of the largest cosine to a learned row.
        `cosine`: the mean under the one-to-one matching.
        `found`: share of true directions whose matched cosine is above 0.9.
        `slope`: of the estimated on the true magnitude where both are above 0, least squares
            through the origin, pooled over the directions found (1 without shrinkage).
        `offset_slope`: the same with an intercept.
        `magnitude_gamma`: Eq. 10 of the magnitudes, 1 where no common factor brings estimated
            nearer to true ones; over all samples of the directions found, so that latents on
            falsely raise it.
        `recall`, `precision`: of being on, over the directions found.
        `gamma` (Eq. 10), `l0`, `mse`.
        What is undefined, as a slope where nothing is found, is left out.
    """
    f = sae.encode(x)
    x_hat = sae.decode(f)
    cosines = data.dictionary @ sae.W_dec.T
    true, latent = match(data.dictionary, sae.W_dec)
    matched = cosines[true, latent]
    is_found = matched > FOUND
    values = {
        "cosine_max": float(cosines.max(1).values.mean()),
        "cosine": float(matched.mean()),
        "found": float(is_found.double().mean()),
        **magnitude_recovery(f[:, latent[is_found]], magnitudes[:, true[is_found]]),
        "gamma": share(x_hat.double().square().sum(), (x_hat * x).double().sum()),  # Eq. 10
        "l0": float((f > 0).double().sum(-1).mean()),
        "mse": float((x_hat - x).double().square().sum(-1).mean()),
    }
    return {name: value for name, value in values.items() if value is not None}


def share(part: Tensor, whole: Tensor) -> float | None:
    return float(part / whole) if whole > 0 else None


def magnitude_recovery(
    estimated: Float[Tensor, "b k"], true: Float[Tensor, "b k"]
) -> dict[str, float | None]:
    """How the estimated magnitudes of the directions found relate to the true ones; None where that
    is undefined.
    """
    estimated, true = estimated.double(), true.double()
    both_on = (estimated > 0) & (true > 0)
    y, t = estimated[both_on], true[both_on]
    centred = t - t.mean() if len(t) else t
    return {
        "slope": share((y * t).sum(), t.square().sum()),
        "offset_slope": share((y * centred).sum(), centred.square().sum()),
        "magnitude_gamma": share(estimated.square().sum(), (estimated * true).sum()),
        "recall": share(both_on.sum(), (true > 0).sum()),
        "precision": share(both_on.sum(), (estimated > 0).sum()),
    }


def compute(cell: list[Mapping]) -> list[dict[str, float]]:
    """Train the SAEs of one cell, which differ in lambda alone, on one sample, and measure each on
    a held-out one.

    A seed moves the data's dictionary, its samples, the initial dictionary and the order of the
    batches, the same way for both architectures.
    """
    shared = cell[0]
    seed = shared["seed"]
    data = SparseData(
        shared["n"], shared["features"], shared["data_l0"], noise=shared["noise"], seed=seed
    )
    x, _ = data.sample(shared["tokens"], seed=2 * seed)
    lams = [float(settings["lam"]) for settings in cell]
    options = {name: shared[name] for name in ("seed", "batch", "lr")}
    saes = loop.train(x, shared["arch"], lams, shared["M"], **options, bar=False)
    unseen, magnitudes = data.sample(HELD_OUT, seed=2 * seed + 1)
    scale = saes[0].about["scale"]
    return [recovery(sae, data, unseen * scale, magnitudes * scale) for sae in saes]


def trained_together(wanted: list[dict]) -> list[list[dict]]:
    """Results whose settings differ in lambda alone: they are trained together."""
    return groups(
        wanted, lambda settings: tuple(v for name, v in settings.items() if name != "lam")
    )


def known_dictionary(scale: str | None = None, *, force: bool = False) -> pd.DataFrame:
    """The known-dictionary study at a scale: reads the results on record and computes those that
    are missing.

    With GSAE_TRAIN=never nothing is computed. Returns one row a result: settings, the values of
    `recovery`, the columns of gsae.evidence.result_files.load_results, and `scale`.

    Raises:
        EvidenceError: where results of a scale other than smoke could not be traced to a commit;
            `force` writes them.
    """
    scale = sweeps.scale(scale)
    wanted = known_settings(scale)
    missing = records.missing_results(KNOWN, wanted, scale)
    print(
        f"{KNOWN} at scale {scale}: {len(wanted) - len(missing)} of {len(wanted)} results on "
        "record",
        file=sys.stderr,
    )
    if records.to_be_made(missing, scale, force):
        for cell in tqdm(trained_together(missing), desc="known dictionary", disable=None):
            compute_and_write(cell, scale, force)
    return result_files.load_results(KNOWN, scale).assign(scale=scale)


def compute_and_write(cell: list[dict], scale: str, force: bool) -> None:
    began = time.monotonic()
    measured = compute(cell)
    seconds = (time.monotonic() - began) / len(cell)
    for settings, values in zip(cell, measured, strict=True):
        origin = provenance.provenance(training_device(), seconds, {}, "")
        result_files.write_result(KNOWN, settings, values, origin, scale, force=force)
