"""SAEs written in the formats of SAELens and dictionary_learning."""

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gsae.saes import ARCHITECTURES, SAE, GatedSAE
from gsae.system import files as disk

DIALECTS = ("saelens", "dictionary_learning")
SAELENS = "6.54.12"  # the version whose format is written
CLASSES = {"baseline": "AutoEncoder", "gated": "GatedAutoEncoder"}  # of dictionary_learning
# their names of our parameters; a linear layer's `.weight` is the transpose
CLASS_PARAMETERS = {
    "baseline": {
        "W": "encoder.weight",
        "W_dec": "decoder.weight",
        "b_dec": "bias",
        "b_enc": "encoder.bias",
    },
    "gated": {
        "W": "encoder.weight",
        "W_dec": "decoder.weight",
        "b_dec": "decoder_bias",
        "b_gate": "gate_bias",
        "b_mag": "mag_bias",
        "r_mag": "r_mag",
    },
}
IN_UNITS_OF_X = ("b_enc", "b_gate", "b_mag", "b_dec")  # parameters that scale with the activations


def export(sae: SAE, folder: str | Path, dialect: str, hook_name: str | None = None) -> Path:
    """Write an SAE for another library; what it writes takes activations as they are (see `raw`).

    "saelens": `sae_weights.safetensors` and `cfg.json`, for `SAE.load_from_disk(folder)`.
    "dictionary_learning": `ae.pt` and `config.json`, for `load_dictionary(folder, device)`. That
    library reads nothing but files of `torch.save`, so `ae.pt` is one, a plain dict of tensors;
    nowhere else does this project write pickles.

    Args:
        hook_name: TransformerLens' name of the SAE's site, of `gsae.lm.names.hook`, for SAELens'
            metadata.

    Raises:
        ValueError: on an unknown dialect, or an SAE that the other library has no class for: an
            architecture other than baseline and gated, or one with an untied `W_mag`.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"unknown dialect {dialect!r}: expected one of {', '.join(DIALECTS)}")
    arch = _exportable(sae, dialect)
    run = getattr(sae, "about", {}).get("run") or {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    w = plain(raw(sae))
    if dialect == "saelens":
        _write_saelens(folder, arch, w, run, hook_name)
    else:
        _write_dictionary_learning(folder, arch, w, run)
    return folder


def _exportable(sae: SAE, dialect: str) -> str:
    """The name of an SAE's architecture. Raises ValueError where other libraries have none like
    it.
    """
    names = {cls: name for name, cls in ARCHITECTURES.items()}
    arch = names.get(type(sae), type(sae).__name__)
    if arch not in CLASSES:
        what = f"the architecture {arch!r}"
    elif getattr(sae, "tie", "") == "none":
        what = "an untied W_mag"
    else:
        return arch
    raise ValueError(
        f"{dialect} has no class for {what}; only baseline and tied gated SAEs can be exported"
    )


@torch.no_grad()
def raw(sae: SAE) -> SAE:
    """A copy that works on activations as they are: the factor `sae.about["scale"]` goes into its
    biases.

    Its latents are those of `sae` divided by the scale, so that the dictionary's rows stay of unit
    norm: `raw(sae).encode(x) = sae.encode(x * scale) / scale`, and the same for `decode`.
    """
    new = copy.deepcopy(sae)
    about = getattr(sae, "about", {})
    for name in IN_UNITS_OF_X:
        if hasattr(new, name):
            getattr(new, name).div_(about.get("scale", 1.0))
    new.about = {**about, "scale": 1.0}
    return new


@torch.no_grad()
def plain(sae: SAE) -> dict[str, Tensor]:
    """Parameters, the encoder's as "W", as those of a tied gated SAE with `r_mag` and a step, or of
    a ReLU one.
    """
    w = {name: t.detach().float().cpu().clone() for name, t in sae.state_dict().items()}
    w["W"] = w.pop(sae.ENCODER)
    if isinstance(sae, GatedSAE):
        if sae.tie == "shared":
            w["r_mag"] = torch.zeros(sae.M)
        if not sae.step:
            # relu(pi_gate) * exp(r_mag): the magnitude path then has the gate's own zeros
            w["b_mag"] = w["b_gate"] * w["r_mag"].exp()
    return w


def _write_saelens(
    folder: Path, arch: str, w: dict[str, Tensor], run: dict, hook_name: str | None
) -> None:
    tensors = {("W_enc" if name == "W" else name): t.contiguous() for name, t in w.items()}
    with disk.replacing(folder / "sae_weights.safetensors", SafetensorError) as path:
        save_file(tensors, path)
    _write_config(folder / "cfg.json", saelens_config(arch, *w["W"].shape, run, hook_name))


def saelens_config(arch: str, n: int, M: int, run: dict, hook_name: str | None) -> dict:
    """The cfg.json of SAELens; `run` holds a run's fields, or nothing where none is known."""
    metadata: dict = {"sae_lens_version": SAELENS, "sae_lens_training_version": None}
    if run:
        metadata |= {
            "model_name": run["lm"],
            "hook_name": hook_name,
            "context_size": run["context"],
            "dataset_path": run["text"],
            "prepend_bos": False,
        }
    return {
        "architecture": "gated" if arch == "gated" else "standard",
        "d_in": n,
        "d_sae": M,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if run.get("site") == "attn_z" else "none",
        "metadata": metadata,
    }


def _write_dictionary_learning(folder: Path, arch: str, w: dict[str, Tensor], run: dict) -> None:
    theirs = CLASS_PARAMETERS[arch]
    state = {theirs[name]: (t.T if t.dim() == 2 else t).contiguous() for name, t in w.items()}
    with disk.replacing(folder / "ae.pt") as path:
        torch.save(state, path)
    n, M = w["W"].shape
    trainer = {
        "dict_class": CLASSES[arch],
        "activation_dim": n,
        "dict_size": M,
        "layer": run.get("layer"),
        "lm_name": run.get("lm"),
        "submodule_name": run.get("site"),
    }
    buffer = {"d_submodule": n, "ctx_len": run.get("context")}
    _write_config(folder / "config.json", {"trainer": trainer, "buffer": buffer})


def _write_config(path: Path, config: dict) -> None:
    disk.write_json(path, config, indent=1, end="\n")
