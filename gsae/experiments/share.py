"""Sharing an SAE on the Hugging Face hub: safetensors, json and a model card with the numbers on
record.
"""

import json
import tempfile
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, ModelCardData

from gsae.evidence import intervals, run_files
from gsae.evidence.run import SCALES
from gsae.saes import files as sae_files
from gsae.saes.files import HubError
from gsae.system import hub_access, tensors
from gsae.system.about import PAPER, REPO, __version__

SOURCES = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"
}  # what is packaged here and on the hub as well
METRICS = {
    "l0": "L0, latents active per token",
    "loss_recovered": "loss recovered, against zero ablation",
    "loss_recovered_mean": "loss recovered, against mean ablation",
    "delta_ce": "added cross-entropy, nats per token",
    "gamma": "gamma, relative reconstruction bias (1: no shrinkage)",
    "fvu": "fraction of variance unexplained",
    "dead_fraction": "share of latents that never fired in evaluation",
}


def record(run_id: str) -> dict:
    """The evidence of a run, at the largest scale that has it. Raises HubError where there is
    none.
    """
    found = (run_files.find(run_id, scale) for scale in reversed(SCALES))
    if path := next(filter(None, found), None):
        return run_files.read(path)
    raise HubError(
        f"run {run_id} has no evidence, so a card would have no numbers: `gsae run` makes it"
    )


def card(record: dict, repo: str, licence: str = "mit") -> str:
    """The README.md of a repository, from a run's evidence: numbers with intervals, training,
    licence, how to load.
    """
    from gsae.lm import names  # slow to load

    run, where, metrics = record["run"], record["provenance"], record["metrics"]
    name = hub_access.split(run["lm"])[0]
    base = SOURCES.get(name) or (names.NAMES[name].source if name in names.NAMES else name)
    tags = ["sparse-autoencoder", f"{run['arch']}-sae", PAPER.lower().removesuffix("v2")]
    texts = None if run["text"] == "packaged" else [hub_access.split(run["text"])[0].split(":")[0]]
    data = ModelCardData(
        license=licence, library_name="gsae", tags=tags, base_model=base or None, datasets=texts
    )
    bounds = intervals.intervals(pd.DataFrame({"sums": [record["sums"]]}), list(METRICS)).iloc[0]
    rows = []
    for key, label in METRICS.items():
        if key in metrics:
            low, high = bounds.get(f"{key}_low"), bounds.get(f"{key}_high")
            rows.append(
                f"| {label} | {metrics[key]:.4g} | "
                f"{'' if low is None else f'{low:.4g} to {high:.4g}'} |"
            )
    text = f"the packaged text of {REPO}" if run["text"] == "packaged" else run["text"]
    place = f"`{run['site']}` of layer {run['layer']} of {base or run['lm']}"
    settings = "\n".join(f"| {key} | {value} |" for key, value in run.items())
    return f"""---
{data.to_yaml()}
---
# {repo.split("/")[-1]}

A {run["arch"]} sparse autoencoder with {run["M"]:,} latents, trained on {place}
by [gsae]({REPO}), a replication of {PAPER}. Run `{record["id"]}`, scale `{record["scale"]}`.

## Numbers

On {metrics["eval_tokens"]:,.0f} held-out tokens;
intervals are 95 %, bootstrapped over groups of text.

| | | interval |
|---|---|---|
{chr(10).join(rows)}

Cross-entropy: {metrics["ce_clean"]:.4f} nats per token,
{metrics["ce_sae"]:.4f} with the SAE in place,
{metrics["ce_zero"]:.4f} with the site set to zero.
The sums behind these numbers are in `evidence.json`.

## Use

```python
import gsae                                  # pip install git+{REPO}

sae = gsae.load("{repo}")
scale = sae.about["scale"]
# x: (tokens, n) activations at {run["site"]}, layer {run["layer"]}
f = sae.encode(x * scale)                    # (tokens, {run["M"]})
x_hat = sae.decode(f) / scale
```
{"" if run["keep_pos0"] else "The first position of each text was left out of training."}
`gsae export {repo} FOLDER --to saelens` (or `dictionary_learning`) writes it for another library.

## Training

{run["tokens"]:,} tokens of {text}, in blocks of {run["context"]}. Made on {where["date"]} at commit
`{where["commit"] or "unknown"}`{" with uncommitted changes" if where["dirty"] else ""}
on {where["device"]}.

| setting | |
|---|---|
{settings}

## Licence

These weights: {licence}. The language model's own licence holds for what is derived from it.
"""


def build(run_id: str, folder: str | Path, repo: str, licence: str = "mit") -> Path:
    """Write what `push` uploads: the weights, their config, the run's evidence and the card.

    Raises:
        HubError: when the run has no evidence.
        FileNotFoundError: when its weights were not kept.
    """
    about, folder = record(run_id), Path(folder)
    sae = sae_files.load(sae_files.weights(run_id))
    folder.mkdir(parents=True, exist_ok=True)
    path = sae_files.save(sae, folder / sae_files.HUB_FILE, **sae.about)
    state = tensors.read(path)[1]
    (folder / "config.json").write_text(json.dumps({"gsae": __version__, **state}, indent=1) + "\n")
    (folder / "evidence.json").write_text(json.dumps(about) + "\n")
    (folder / "README.md").write_text(card(about, repo, licence))
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
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=f"Run {run_id}"
            )
        except Exception as error:
            raise HubError(f"cannot push to {repo}: {hub_access.why(error, repo)}") from error
    return str(done)
