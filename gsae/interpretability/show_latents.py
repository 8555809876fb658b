"""`gsae study show`: dashboards of any SAE, with nothing on record."""

from pathlib import Path

import torch

from gsae.evidence.run import Run
from gsae.interpretability import dashboards, latent_files, latents
from gsae.interpretability.compared_saes import StudyError
from gsae.interpretability.place import held_out
from gsae.lm import models as language_models
from gsae.saes import ARCHITECTURES, files


def show(
    where: str,
    count: int,
    tokens: int,
    folder: Path,
    seed: int = 0,
    lm: str = "",
    site: str = "",
    layer: int = -1,
) -> list[Path]:
    """Dashboards of latents of any SAE that `gsae.load` finds, drawn at random of all, from one
    pass over text.

    Args:
        lm, site, layer: where its activations are from, for an SAE that does not name the run that
            made it.

    Returns:
        The page, and the latents as data for `gsae study make`.

    Raises:
        StudyError: an SAE that does not say where its activations are from; or fewer latents than
            asked for.
    """
    sae = files.load(where)
    origin = origin_of_activations(sae, where, lm, site, layer)
    M = len(sae.W_dec)
    if not 0 < count <= M:
        raise StudyError(f"{where} has {M} latents, {count} are asked for")
    run = Run.of(origin)
    order = torch.randperm(M, generator=torch.Generator().manual_seed(seed))
    chosen = order[:count].tolist()
    name = Path(where).stem
    arm = next(arm for arm, architecture in ARCHITECTURES.items() if type(sae) is architecture)
    model = language_models.load(run.lm)
    blocks = held_out(run, model, tokens)
    about = {"arm": arm, "seed": seed}
    data = latents.collect(sae, model, blocks, run.site, run.layer, chosen, run=name, about=about)
    page = dashboards.write_page(data, folder / f"{name}.html", f"Latents of {name}")
    return [page, latent_files.save(latent_files.slim(data), folder / f"{name}.json")]


def origin_of_activations(sae, where: str, lm: str, site: str, layer: int) -> dict:
    """The fields of the run that made an SAE, with what is given beside. Raises StudyError where
    language model, site or layer is in neither.
    """
    origin = dict(sae.about.get("run", {}))
    if lm:
        origin["lm"] = lm
    if site:
        origin["site"] = site
    if layer != -1:
        origin["layer"] = layer
    missing = [f"--{name}" for name in ("lm", "site", "layer") if name not in origin]
    if missing:
        raise StudyError(
            f"{where} does not say which activations it reads: give {', '.join(missing)}"
        )
    return origin
