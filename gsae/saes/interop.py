"""SAEs in the formats of SAELens and dictionary_learning (and SAEBench's), read and written."""

import copy
import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gsae.saes import ARCHITECTURES, SAE, GatedSAE
from gsae.system import files as disk
from gsae.system.tensors import CheckpointError

DIALECTS = ("saelens", "dictionary_learning")
SAELENS = "6.54.12"  # the version whose format is written
NAMES = {  # our parameter -> its names elsewhere; a linear layer's `.weight` is the transpose
    "W": ("W_enc", "W_gate", "encoder.weight"),
    "W_dec": ("W_dec", "decoder.weight"),
    "b_dec": ("b_dec", "bias", "decoder_bias", "decoder.bias"),
    "b_enc": ("b_enc", "encoder.bias"),
    "b_gate": ("b_gate", "gate_bias"),
    "b_mag": ("b_mag", "mag_bias"),
    "r_mag": ("r_mag",),
}
OURS = {alias: name for name, aliases in NAMES.items() for alias in aliases}
CLASSES = {"AutoEncoder": "baseline", "AutoEncoderNew": "baseline", "GatedAutoEncoder": "gated"}
ENCODERS, BIASES = ("W_enc", "W_gate", "W_mag"), ("b_enc", "b_gate", "b_mag")


@torch.no_grad()
def raw(sae: SAE) -> SAE:
    """A copy that works on activations as they are: the factor `sae.about["scale"]` goes into its
    biases.

    Its latents are those of `sae` divided by the scale, so that the dictionary's rows stay of unit
    norm: `raw(sae).encode(x) = sae.encode(x * scale) / scale`, and the same for `decode`.
    """
    new, scale = copy.deepcopy(sae), getattr(sae, "about", {}).get("scale", 1.0)
    for name in (*BIASES, "b_dec"):
        if hasattr(new, name):
            getattr(new, name).div_(scale)
    new.about = {**getattr(sae, "about", {}), "scale": 1.0}
    return new


@torch.no_grad()
def unit_rows(sae: SAE) -> SAE:
    """A copy whose dictionary has rows of unit norm, with the same reconstructions; latents grow by
    the old norms.

    Encoder columns and biases are multiplied by the norms. `r_mag` is left alone: it is a ratio of
    two encoders that are both multiplied. Rows of norm 0 stay as they are.
    """
    new = copy.deepcopy(sae)
    norms = new.W_dec.norm(dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    new.W_dec.div_(norms[:, None])
    for name in (*ENCODERS, *BIASES):
        if hasattr(new, name):
            getattr(new, name).mul_(norms)
    return new


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
    arch = next(
        (name for name, cls in ARCHITECTURES.items() if type(sae) is cls), type(sae).__name__
    )
    if arch not in CLASSES.values() or getattr(sae, "tie", "") == "none":
        what = "an untied W_mag" if arch == "gated" else f"the architecture {arch!r}"
        raise ValueError(
            f"{dialect} has no class for {what}; only baseline and tied gated SAEs can be exported"
        )
    folder, run = Path(folder), getattr(sae, "about", {}).get("run") or {}
    folder.mkdir(parents=True, exist_ok=True)
    w = plain(raw(sae))
    if dialect == "saelens":
        tensors = {("W_enc" if name == "W" else name): t.contiguous() for name, t in w.items()}
        with disk.replacing(folder / "sae_weights.safetensors", SafetensorError) as path:
            save_file(tensors, path)
        config = saelens_config(arch, *w["W"].shape, run, hook_name)
        with disk.replacing(folder / "cfg.json") as path:
            path.write_text(json.dumps(config, indent=1) + "\n")
        return folder
    # of the names of b_dec: theirs differ between the two classes
    column = 2 if arch == "gated" else 1
    theirs = {"W": "encoder.weight", "W_dec": "decoder.weight", "b_dec": NAMES["b_dec"][column]}
    theirs |= {name: NAMES[name][-1] for name in ("b_enc", "b_gate", "b_mag", "r_mag")}
    state = {theirs[name]: (t.T if t.dim() == 2 else t).contiguous() for name, t in w.items()}
    with disk.replacing(folder / "ae.pt") as path:
        torch.save(state, path)
    trainer = {
        "dict_class": next(name for name, ours in CLASSES.items() if ours == arch),
        "activation_dim": sae.n,
        "dict_size": sae.M,
        "layer": run.get("layer"),
        "lm_name": run.get("lm"),
        "submodule_name": run.get("site"),
    }
    config = {"trainer": trainer, "buffer": {"d_submodule": sae.n, "ctx_len": run.get("context")}}
    with disk.replacing(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=1) + "\n")
    return folder


@torch.no_grad()
def plain(sae: SAE) -> dict[str, Tensor]:
    """Parameters under the keys of `NAMES`, as a tied gated SAE with `r_mag` and a step, or as a
    ReLU one.
    """
    w = {name: t.detach().float().cpu().clone() for name, t in sae.state_dict().items()}
    w["W"] = w.pop(sae.ENCODER)
    if isinstance(sae, GatedSAE):
        if sae.tie == "shared":
            w["r_mag"] = torch.zeros(sae.M)
        if (
            not sae.step
        ):  # relu(pi_gate) * exp(r_mag): the magnitude path then has the gate's own zeros
            w["b_mag"] = w["b_gate"] * w["r_mag"].exp()
    return w


def saelens_config(arch: str, n: int, M: int, run: dict, hook_name: str | None) -> dict:
    """The cfg.json of SAELens; `run` holds a run's fields, or nothing where none is known."""
    metadata: dict = {"sae_lens_version": SAELENS, "sae_lens_training_version": None}
    if run:
        metadata |= {
            "model_name": run["lm"], "hook_name": hook_name, "context_size": run["context"],
            "dataset_path": run["text"], "prepend_bos": False,
        }  # fmt: skip
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


def load(where: str | Path, *, scale: float | None = None, normed: bool = False) -> SAE:
    """A gated or standard SAE saved by SAELens, dictionary_learning or SAEBench, as one of this
    package's classes.

    `encode` and `decode` are then those of the other library, on activations as they are.

    Args:
        where: a folder (`sae_weights.safetensors` and `cfg.json`, or `ae.pt` and `config.json`) or
            a weights file.
        scale: the factor by which activations were multiplied in training, where it is not in the
            weights yet; SAELens' `expected_average_only_in` is one, found without help if its
            activation_scaler.json is there.
        normed: also give the dictionary unit rows (`unit_rows`): what this package's metrics of
            latents expect.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when the weights are damaged, or hold more than tensors.
        ValueError: on another architecture, or a normalisation that differs from token to token.
    """
    path = _find(Path(where))
    tensors, config = _tensors(path), {}
    for beside in (path.with_name("cfg.json"), path.with_name("config.json")):
        if beside.exists():
            config = json.loads(beside.read_text())
            break
    arch = _architecture(path, tensors, config)
    w = {
        OURS[name]: (t.T if name.endswith("coder.weight") else t).double()
        for name, t in tensors.items()
    }
    normalisation = config.get("normalize_activations")
    if normalisation in (True, "expected_average_only_in"):
        scale = scale or _scale(path)
    elif normalisation not in (None, False, "none"):
        raise ValueError(
            f"{path} normalises each token by itself (normalize_activations {normalisation!r}), "
            "which no weights can "
            "express: only 'none' and 'expected_average_only_in' can be read"
        )
    if scale:
        w["W"], w["W_dec"], w["b_dec"] = w["W"] * scale, w["W_dec"] / scale, w["b_dec"] / scale
    if not config.get("apply_b_dec_to_input", "decoder.bias" not in tensors):
        # our encoders centre their input: give back what that takes away
        shift = w["b_dec"] @ w["W"]
        for name in set(w) & set(BIASES):
            w[name] = w[name] + (shift * w["r_mag"].exp() if name == "b_mag" else shift)
    sae = ARCHITECTURES[arch](*w["W"].shape)
    w[sae.ENCODER] = w.pop("W")
    try:
        sae.load_state_dict({name: t.float() for name, t in w.items()})
    except RuntimeError as error:
        raise ValueError(
            f"{path}: a tensor's shape does not fit an encoder of {sae.n} x {sae.M}: {error}"
        ) from error
    sae.about = {"scale": 1.0, "source": str(where), "config": config}
    return (unit_rows(sae) if normed else sae).eval()


def _find(where: Path) -> Path:
    if where.is_file():
        return where
    files = [where / name for name in ("sae_weights.safetensors", "ae.pt")]
    if found := next((path for path in files if path.exists()), None):
        return found
    raise FileNotFoundError(
        f"no SAE at {where}: expected a weights file, or a folder with sae_weights.safetensors "
        "(SAELens) or ae.pt "
        "(dictionary_learning)"
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a weights file; nothing in it is run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"cannot read {path}: it is damaged, or holds more than tensors ({error})"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path} is no dict of tensors, which is what a saved state_dict is")
    return tensors


def _architecture(path: Path, tensors: dict[str, Tensor], config: dict) -> str:
    """ "baseline" or "gated", after a check of the names and shapes; SAELens' old factors of 1 are
    dropped.
    """
    if "scaling_factor" in tensors and (tensors["scaling_factor"] == 1).all():
        del tensors["scaling_factor"]
    named = config.get("architecture") or config.get("trainer", {}).get("dict_class") or "standard"
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    unknown = sorted(set(tensors) - set(OURS))
    if named not in ("standard", "gated", *CLASSES) or activation != "relu" or unknown:
        what = (
            f"tensors {', '.join(unknown)}"
            if unknown
            else f"architecture {named!r}, activation {activation!r}"
        )
        raise ValueError(f"{path} holds no gated or standard SAE but one with {what}")
    found = {OURS[name]: name for name in tensors}
    gated = "b_gate" in found
    if gated and "r_mag" not in found:  # SAEs with one encoder for both paths
        tensors["r_mag"], found["r_mag"] = torch.zeros_like(tensors[found["b_gate"]]), "r_mag"
    expected = {"W", "W_dec", "b_dec", *(("b_gate", "b_mag", "r_mag") if gated else ("b_enc",))}
    if set(found) != expected or len(found) != len(tensors):
        raise ValueError(
            f"{path} has tensors {', '.join(sorted(tensors))}: expected one each for "
            f"{sorted(expected)}"
        )
    return "gated" if gated else "baseline"


def _scale(path: Path) -> float:
    """The factor that SAELens keeps beside a checkpoint of a run that has not ended."""
    kept = path.with_name("activation_scaler.json")
    if kept.exists() and (factor := json.loads(kept.read_text()).get("scaling_factor")):
        return factor
    raise ValueError(
        f"{path} was trained on activations times a factor that is not in it: pass scale=, which "
        "SAELens sets to "
        "sqrt(n) divided by the mean norm of the activations"
    )
