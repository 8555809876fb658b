"""Sharing an SAE on the Hugging Face hub: safetensors, json and a model card with the numbers on
record.
"""

import tempfile
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, ModelCardData

from gsae.evidence import intervals, run_files
from gsae.evidence.run import SCALES
from gsae.saes import files as sae_files
from gsae.saes.files import HubError
from gsae.system import files, hub_access, tensors
from gsae.system.about import PAPER, REPO, __version__

# what is packaged here and on the hub as well
SOURCES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
METRICS = {
    "l0": "L0, latents active per token",
    "loss_recovered": "loss recovered, against zero ablation",
    "loss_recovered_mean": "loss recovered, against mean ablation",
    "delta_ce": "added cross-entropy, nats per token",
    "gamma": "gamma, relative reconstruction bias (1: no shrinkage)",
    "fvu": "fraction of variance unexplained",
    "dead_fraction": "share of latents that never fired in evaluation",
}

CARD = """---
{header}
---
# {title}

A {run[arch]} sparse autoencoder with {run[M]:,} latents, trained on {place}
by [gsae]({code}), a replication of {paper}. Run `{id}`, scale `{scale}`.

## Numbers

On {metrics[eval_tokens]:,.0f} held-out tokens;
intervals are 95 %, bootstrapped over groups of text.

| | | interval |
|---|---|---|
{numbers}

Cross-entropy: {metrics[ce_clean]:.4f} nats per token,
{metrics[ce_sae]:.4f} with the SAE in place,
{metrics[ce_zero]:.4f} with the site set to zero.
The sums behind these numbers are in `evidence.json`.

## Use

```python
import gsae                                  # pip install git+{code}

sae = gsae.load("{repo}")
scale = sae.about["scale"]
# x: (tokens, n) activations at {run[site]}, layer {run[layer]}
f = sae.encode(x * scale)                    # (tokens, {run[M]})
x_hat = sae.decode(f) / scale
```
{left_out}
`gsae export {repo} FOLDER --to saelens` (or `dictionary_learning`) writes it for another library.

## Training

{run[tokens]:,} tokens of {text}, in blocks of {run[context]}. Made on {provenance[date]} at commit
`{commit}`{changes}
on {provenance[device]}.

| setting | |
|---|---|
{settings}

## Licence

These weights: {licence}. The language model's own licence holds for what is derived from it.
"""


def record(run_id: str) -> dict:
    """The evidence of a run, at the largest scale that has it. Raises HubError where there is
    none.
    """
    for scale in reversed(SCALES):
        path = run_files.find(run_id, scale)
        if path:
            return run_files.read(path)
    raise HubError(
        f"run {run_id} has no evidence, so a card would have no numbers: `gsae run` makes it"
    )


def card(record: dict, repo: str, licence: str = "mit") -> str:
    """The README.md of a repository, from a run's evidence: numbers with intervals, training,
    licence, how to load.
    """
    run, provenance = record["run"], record["provenance"]
    base = base_model(run["lm"])
    packaged = run["text"] == "packaged"
    left_out = "The first position of each text was left out of training."
    return CARD.format(
        header=card_header(run, base, licence),
        title=repo.split("/")[-1],
        place=f"`{run['site']}` of layer {run['layer']} of {base or run['lm']}",
        numbers=number_rows(record),
        left_out="" if run["keep_pos0"] else left_out,
        text=f"the packaged text of {REPO}" if packaged else run["text"],
        commit=provenance["commit"] or "unknown",
        changes=" with uncommitted changes" if provenance["dirty"] else "",
        settings="\n".join(f"| {name} | {value} |" for name, value in run.items()),
        id=record["id"],
        scale=record["scale"],
        run=run,
        provenance=provenance,
        metrics=record["metrics"],
        code=REPO,
        paper=PAPER,
        repo=repo,
        licence=licence,
    )


def base_model(lm: str) -> str:
    """The repository on the hub of a run's language model; empty for one that is not there."""
    from gsae.lm import names  # slow to load

    name = hub_access.split(lm)[0]
    if name in SOURCES:
        return SOURCES[name]
    return names.NAMES[name].source if name in names.NAMES else name


def card_header(run: dict, base: str, licence: str) -> str:
    """What the hub reads of a card, as yaml."""
    dataset = hub_access.split(run["text"])[0].split(":")[0]
    return ModelCardData(
        license=licence,
        library_name="gsae",
        tags=["sparse-autoencoder", f"{run['arch']}-sae", PAPER.lower().removesuffix("v2")],
        base_model=base or None,
        datasets=None if run["text"] == "packaged" else [dataset],
    ).to_yaml()


def number_rows(record: dict) -> str:
    """The rows of the card's table of numbers, of those metrics that the run has."""
    metrics = record["metrics"]
    sums = pd.DataFrame({"sums": [record["sums"]]})
    bounds = intervals.intervals(sums, list(METRICS)).iloc[0]
    rows = []
    for name, label in METRICS.items():
        if name in metrics:
            low, high = bounds.get(f"{name}_low"), bounds.get(f"{name}_high")
            interval = "" if low is None else f"{low:.4g} to {high:.4g}"
            rows.append(f"| {label} | {metrics[name]:.4g} | {interval} |")
    return "\n".join(rows)


def build(run_id: str, folder: str | Path, repo: str, licence: str = "mit") -> Path:
    """Write what `push` uploads: the weights, their config, the run's evidence and the card.

    Raises:
        HubError: when the run has no evidence.
        FileNotFoundError: when its weights were not kept.
    """
    about, folder = record(run_id), Path(folder)
    sae = sae_files.load(sae_files.weights(run_id))
    folder.mkdir(parents=True, exist_ok=True)
    weights = sae_files.save(sae, folder / sae_files.HUB_FILE, **sae.about)
    config = {"gsae": __version__, **tensors.read(weights)[1]}
    files.write_json(folder / "config.json", config, indent=1, end="\n")
    files.write_json(folder / "evidence.json", about, end="\n")
    files.write_text(folder / "README.md", card(about, repo, licence))
    return folder


def push(run_id: str, repo: str, *, private: bool = False, licence: str = "mit") -> str:
    """Upload a run's SAE to `owner/name` on the hub, made if it is not there; returns the address
    of the commit.

    Raises:
        HubError: when the run has no evidence, or the hub refuses; says why.
        FileNotFoundError: when the run's weights were not kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        build(run_id, folder, repo, licence)
        api = HfApi(library_name="gsae", library_version=__version__)
        message = f"Run {run_id}"
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            address = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        except Exception as error:
            raise HubError(f"cannot push to {repo}: {hub_access.why(error, repo)}") from error
    return str(address)
