"""SAEs that SAELens, dictionary_learning or SAEBench wrote, read as this package's own."""

import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gsae.saes import ARCHITECTURES, SAE
from gsae.system.tensors import CheckpointError

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
PARAMETERS = {  # architecture -> the parameters that a file must have, under our names
    "baseline": {"W", "W_dec", "b_dec", "b_enc"},
    "gated": {"W", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"},
}
# what the libraries call these architectures
KNOWN = ("standard", "gated", "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder")
BIASES = ("b_enc", "b_gate", "b_mag")  # of encoders


def import_sae(where: str | Path, *, scale: float | None = None) -> SAE:
    """A gated or standard SAE saved by SAELens, dictionary_learning or SAEBench, as one of this
    package's classes.

    `encode` and `decode` are then those of the other library, on activations as they are.

    Args:
        where: a folder (`sae_weights.safetensors` and `cfg.json`, or `ae.pt` and `config.json`) or
            a weights file.
        scale: the factor by which activations were multiplied in training, where it is not in the
            weights yet; SAELens' `expected_average_only_in` is one, found without help if its
            activation_scaler.json is there.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when the weights are damaged, or hold more than tensors.
        ValueError: on another architecture, or a normalisation that differs from token to token.
    """
    path = _find_weights(Path(where))
    tensors = _without_factors_of_one(_tensors(path))
    config = _config(path)
    _check_architecture(path, tensors, config)
    # where no config says so: AutoEncoderNew, which has a `decoder.bias`, does not centre its input
    centres = config.get("apply_b_dec_to_input", "decoder.bias" not in tensors)
    w = _parameters(path, tensors)
    scale = _scale(path, config, scale)
    if scale:
        w["W"], w["W_dec"], w["b_dec"] = w["W"] * scale, w["W_dec"] / scale, w["b_dec"] / scale
    if not centres:
        _centre(w)
    sae = ARCHITECTURES[_architecture(w)](*w["W"].shape)
    w[sae.ENCODER] = w.pop("W")
    try:
        sae.load_state_dict({name: t.float() for name, t in w.items()})
    except RuntimeError as error:
        raise ValueError(
            f"{path}: a tensor's shape does not fit an encoder of {sae.n} x {sae.M}: {error}"
        ) from error
    sae.about = {"scale": 1.0, "source": str(where), "config": config}
    return sae.eval()


def _find_weights(where: Path) -> Path:
    if where.is_file():
        return where
    for name in ("sae_weights.safetensors", "ae.pt"):
        if (where / name).exists():
            return where / name
    raise FileNotFoundError(
        f"no SAE at {where}: expected a weights file, or a folder with sae_weights.safetensors "
        "(SAELens) or ae.pt (dictionary_learning)"
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


def _without_factors_of_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old versions of SAELens write a factor for each latent, which does nothing where it is 1."""
    if "scaling_factor" in tensors and (tensors["scaling_factor"] == 1).all():
        return {name: t for name, t in tensors.items() if name != "scaling_factor"}
    return tensors


def _config(path: Path) -> dict:
    """The configuration beside a weights file; none where there is none."""
    for name in ("cfg.json", "config.json"):
        beside = path.with_name(name)
        if beside.exists():
            return json.loads(beside.read_text())
    return {}


def _check_architecture(path: Path, tensors: dict[str, Tensor], config: dict) -> None:
    """Raises ValueError where config or tensors are of no gated or standard SAE."""
    named = config.get("architecture") or config.get("trainer", {}).get("dict_class") or "standard"
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    unknown = sorted(set(tensors) - set(OURS))
    if unknown:
        what = f"tensors {', '.join(unknown)}"
    elif named not in KNOWN or activation != "relu":
        what = f"architecture {named!r}, activation {activation!r}"
    else:
        return
    raise ValueError(f"{path} holds no gated or standard SAE but one with {what}")


def _parameters(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names, in float64, encoders and decoders as ours lie. Raises ValueError
    where one is missing, is there twice, or belongs to another architecture.
    """
    theirs = {OURS[name]: name for name in tensors}
    if "b_gate" in theirs and "r_mag" not in theirs:  # SAEs with one encoder for both paths
        r_mag = torch.zeros_like(tensors[theirs["b_gate"]])
        tensors, theirs = {**tensors, "r_mag": r_mag}, {**theirs, "r_mag": "r_mag"}
    expected = PARAMETERS[_architecture(theirs)]
    if set(theirs) != expected or len(theirs) != len(tensors):
        raise ValueError(
            f"{path} has tensors {', '.join(sorted(tensors))}: expected one each for "
            f"{sorted(expected)}"
        )
    return {
        OURS[name]: (t.T if name.endswith("coder.weight") else t).double()
        for name, t in tensors.items()
    }


def _architecture(parameters: dict) -> str:
    return "gated" if "b_gate" in parameters else "baseline"


def _scale(path: Path, config: dict, given: float | None) -> float | None:
    """The factor that activations were multiplied by in training and that is not in the weights.
    Raises ValueError where there is one and it is not known, or one for each token.
    """
    normalisation = config.get("normalize_activations")
    if normalisation in (None, False, "none"):
        return given
    if normalisation in (True, "expected_average_only_in"):
        return given or _kept_scale(path)
    raise ValueError(
        f"{path} normalises each token by itself (normalize_activations {normalisation!r}), "
        "which no weights can express: only 'none' and 'expected_average_only_in' can be read"
    )


def _kept_scale(path: Path) -> float:
    """The factor that SAELens keeps beside a checkpoint of a run that has not ended."""
    kept = path.with_name("activation_scaler.json")
    factor = json.loads(kept.read_text()).get("scaling_factor") if kept.exists() else None
    if not factor:
        raise ValueError(
            f"{path} was trained on activations times a factor that is not in it: pass scale=, "
            "which SAELens sets to sqrt(n) divided by the mean norm of the activations"
        )
    return factor


def _centre(w: dict[str, Tensor]) -> None:
    """Make an encoder that takes `x` one that takes `x - b_dec`, as ours do: its biases give back
    what that takes away.
    """
    shift = w["b_dec"] @ w["W"]
    for name in set(w) & set(BIASES):
        # the magnitude path sees the shift through its own encoder, exp(r_mag) times the gate's
        w[name] = w[name] + (shift * w["r_mag"].exp() if name == "b_mag" else shift)
