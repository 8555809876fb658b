"""Formats of SAELens and dictionary_learning: against their forward passes written out here, and
against themselves.
"""

import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gsae.lm import names
from gsae.saes import BaselineSAE, GatedSAE, exporting, importing
from gsae.system.tensors import CheckpointError

B, N, M, SCALE = 7, 5, 11, 0.25
PEERS = Path(__file__).parents[2] / os.environ.get("PEERS", ".bench") / "bin" / "python"


def hook_name(sae):
    return names.hook(sae.about["run"]["site"], sae.about["run"]["layer"])


def filled(sae, seed=1):
    """An SAE with random parameters, its dictionary's rows far from unit norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.7)
    return sae


def inputs():
    return torch.randn(B, N, generator=torch.Generator().manual_seed(0)) * 3


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# The forward passes of the other libraries, from the tensors in their files: state, x -> latents,
# reconstruction.


def saelens(s, x, centred=True):
    x = x - s["b_dec"] if centred else x
    if "b_gate" in s:
        on = (x @ s["W_enc"] + s["b_gate"]) > 0
        f = on * torch.relu(x @ (s["W_enc"] * s["r_mag"].exp()) + s["b_mag"])
    else:
        f = torch.relu(x @ s["W_enc"] + s["b_enc"])
    return f, f @ s["W_dec"] + s["b_dec"]


def dictionary_learning(s, x):
    if "gate_bias" in s:
        pre = (x - s["decoder_bias"]) @ s["encoder.weight"].T
        f = (pre + s["gate_bias"] > 0) * torch.relu(s["r_mag"].exp() * pre + s["mag_bias"])
        return f, f @ s["decoder.weight"].T + s["decoder_bias"]
    if "bias" in s:  # AutoEncoder
        f = torch.relu((x - s["bias"]) @ s["encoder.weight"].T + s["encoder.bias"])
        return f, f @ s["decoder.weight"].T + s["bias"]
    f = torch.relu(
        x @ s["encoder.weight"].T + s["encoder.bias"]
    )  # AutoEncoderNew, the April update's
    return f, f @ s["decoder.weight"].T + s["decoder.bias"]


def saebench(s, x):
    pre = (x - s["b_dec"]) @ s["W_enc"]
    f = (pre + s["gate_bias"] > 0) * torch.relu(s["r_mag"].exp() * pre + s["b_mag"])
    return f, f @ s["W_dec"] + s["b_dec"]


def random(shapes):
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) * 0.7 for name, shape in shapes.items()}


LINEAR = {"encoder.weight": (M, N), "decoder.weight": (N, M)}
ENCODER = {"W_enc": (N, M), "W_dec": (M, N), "b_dec": (N,)}
FILES = {  # name -> tensors, config, forward pass
    "saelens gated": (
        {**ENCODER, "b_gate": (M,), "b_mag": (M,), "r_mag": (M,)},
        {"architecture": "gated", "apply_b_dec_to_input": True, "normalize_activations": "none"},
        saelens,
    ),
    "saelens gated, not centred": (
        {**ENCODER, "b_gate": (M,), "b_mag": (M,), "r_mag": (M,)},
        {"architecture": "gated", "apply_b_dec_to_input": False, "normalize_activations": "none"},
        lambda s, x: saelens(s, x, centred=False),
    ),
    "saelens standard": ({**ENCODER, "b_enc": (M,)}, {"architecture": "standard"}, saelens),
    "saelens standard, not centred": (
        {**ENCODER, "b_enc": (M,)},
        {"architecture": "standard", "apply_b_dec_to_input": False},
        lambda s, x: saelens(s, x, centred=False),
    ),
    "GatedAutoEncoder": (
        {**LINEAR, "decoder_bias": (N,), "r_mag": (M,), "gate_bias": (M,), "mag_bias": (M,)},
        {"trainer": {"dict_class": "GatedAutoEncoder"}},
        dictionary_learning,
    ),
    "AutoEncoder": (
        {**LINEAR, "bias": (N,), "encoder.bias": (M,)},
        {"trainer": {"dict_class": "AutoEncoder", "trainer_class": "StandardTrainerAprilUpdate"}},
        dictionary_learning,
    ),
    "AutoEncoderNew": (
        {**LINEAR, "encoder.bias": (M,), "decoder.bias": (N,)},
        {"trainer": {"dict_class": "AutoEncoderNew"}},
        dictionary_learning,
    ),
    "saebench gated": ({**ENCODER, "gate_bias": (M,), "b_mag": (M,), "r_mag": (M,)}, {}, saebench),
}


def write(folder, tensors, config, pt):
    folder.mkdir(exist_ok=True)
    if pt:
        torch.save(tensors, folder / "ae.pt")
    else:
        save_file(tensors, folder / "sae_weights.safetensors")
    (folder / ("config.json" if pt else "cfg.json")).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_what_they_save_encodes_and_decodes_as_it_does_there(tmp_path, name):
    shapes, config, forward = FILES[name]
    state, x = random(shapes), inputs()
    folder = write(tmp_path / "sae", state, config, pt="Auto" in name)
    f, x_hat = forward(state, x)
    sae = importing.import_sae(folder)
    assert (sae.n, sae.M) == (N, M) and 0 < (f > 0).float().mean() < 1
    close(sae.encode(x), f)
    close(sae.decode(f), x_hat)
    file = next(p for p in folder.iterdir() if p.suffix in (".pt", ".safetensors"))
    close(importing.import_sae(file).encode(x), f)


ARMS = {
    "paper": dict(),
    "shared": dict(tie="shared"),
    "no step": dict(step=False),
    "shared, no step": dict(tie="shared", step=False),
    "unfrozen": dict(freeze="none", auxiliary=False),
    "baseline": None,
}


def trained(arm, scale=SCALE):
    switches = ARMS[arm]
    sae = filled(BaselineSAE(N, M) if switches is None else GatedSAE(N, M, **switches))
    sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.about = {
        "scale": scale,
        "run": {"lm": "pythia-2.8b", "site": "mlp_out", "layer": 4, "context": 64, "text": "t"},
    }
    return sae


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("dialect", exporting.DIALECTS)
def test_an_export_takes_activations_as_they_are(tmp_path, dialect, arm):
    sae, x = trained(arm), inputs()
    f, x_hat = sae.encode(x * SCALE) / SCALE, sae(x * SCALE) / SCALE
    folder = exporting.export(sae, tmp_path / "out", dialect)
    if dialect == "saelens":
        got = saelens(load_file(folder / "sae_weights.safetensors"), x)
    else:
        got = dictionary_learning(torch.load(folder / "ae.pt", weights_only=True), x)
    close(got[0], f)
    close(got[1], x_hat)
    again = importing.import_sae(folder)
    close(again.encode(x), f)
    close(again.decode(f), x_hat)
    close(again.W_dec.norm(dim=1), torch.ones(M))
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    close(sae.encode(x * SCALE) / SCALE, f)  # the one passed in is left alone


def test_configs_say_what_was_exported(tmp_path):
    sae = trained("paper")
    config = json.loads(
        (exporting.export(sae, tmp_path / "a", "saelens", hook_name(sae)) / "cfg.json").read_text()
    )
    assert config["architecture"] == "gated" and (config["d_in"], config["d_sae"]) == (N, M)
    assert config["apply_b_dec_to_input"] is True and config["normalize_activations"] == "none"
    assert (
        config["metadata"]["hook_name"] == "blocks.4.hook_mlp_out"
        and config["reshape_activations"] == "none"
    )
    sae.about["run"]["site"] = "attn_z"
    config = json.loads(
        (exporting.export(sae, tmp_path / "a", "saelens", hook_name(sae)) / "cfg.json").read_text()
    )
    assert (
        config["metadata"]["hook_name"] == "blocks.4.attn.hook_z"
        and config["reshape_activations"] == "hook_z"
    )
    config = json.loads(
        (exporting.export(sae, tmp_path / "b", "dictionary_learning") / "config.json").read_text()
    )
    assert config["trainer"]["dict_class"] == "GatedAutoEncoder" and config["trainer"]["layer"] == 4
    assert config["buffer"]["ctx_len"] == 64


def test_saelens_scaling_factor_is_folded_from_beside_the_file_or_from_the_caller(tmp_path):
    shapes, config, _ = FILES["saelens gated, not centred"]
    state, x = random(shapes), inputs()
    folder = write(
        tmp_path / "sae",
        state,
        {**config, "normalize_activations": "expected_average_only_in"},
        pt=False,
    )
    f, x_hat = saelens(state, x * 0.3, centred=False)
    with pytest.raises(ValueError, match=r"pass scale=.*sqrt\(n\) divided by the mean norm"):
        importing.import_sae(folder)
    sae = importing.import_sae(folder, scale=0.3)
    close(sae.encode(x), f)
    close(sae.decode(f), x_hat / 0.3)
    (folder / "activation_scaler.json").write_text(
        json.dumps({"scaling_factor": 0.3, "has_whitening": False})
    )
    close(importing.import_sae(folder)(x), x_hat / 0.3)


@pytest.mark.parametrize(
    "tensors, config, message",
    [
        (
            {},
            {"normalize_activations": "layer_norm"},
            "normalises each token by itself.*'layer_norm'",
        ),
        ({}, {"architecture": "topk"}, "no gated or standard SAE.*'topk'"),
        ({}, {"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu'"),
        ({"threshold": (M,)}, {}, "tensors threshold"),
        ({"b_gate": (M,), "b_mag": (M,)}, {}, "expected one each"),
        ({"b_enc": (M + 1,)}, {}, "shape does not fit an encoder of 5 x 11.*b_enc"),
    ],
)
def test_what_is_no_gated_or_standard_sae_is_refused(tmp_path, tensors, config, message):
    shapes = {**ENCODER, "b_enc": (M,), **tensors}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        importing.import_sae(write(tmp_path / "sae", random(shapes), config, pt=False))


def test_old_saelens_files_hold_factors_of_one(tmp_path):
    shapes, config, forward = FILES["saelens standard"]
    state = random(shapes)
    x, extra = inputs(), {"scaling_factor": torch.ones(M)}
    close(
        importing.import_sae(write(tmp_path / "a", state | extra, config, pt=False))(x),
        forward(state, x)[1],
    )
    with pytest.raises(ValueError, match="tensors scaling_factor"):
        importing.import_sae(
            write(
                tmp_path / "b", state | {"scaling_factor": torch.full((M,), 2.0)}, config, pt=False
            )
        )


class Payload:
    def __reduce__(self):
        return os.system, ("touch " + os.environ["INTEROP_PROOF"],)


def test_a_pickle_that_is_more_than_tensors_is_refused_and_not_run(tmp_path, monkeypatch):
    proof = tmp_path / "ran"
    monkeypatch.setenv("INTEROP_PROOF", str(proof))
    (tmp_path / "ae.pt").write_bytes(pickle.dumps({"bias": Payload()}, protocol=2))
    with pytest.raises(CheckpointError, match="more than tensors"):
        importing.import_sae(tmp_path)
    assert not proof.exists()
    torch.save({"bias": [1]}, tmp_path / "ae.pt")
    with pytest.raises(CheckpointError, match="no dict of tensors"):
        importing.import_sae(tmp_path)
    with pytest.raises(FileNotFoundError, match="sae_weights.safetensors .* or ae.pt"):
        importing.import_sae(tmp_path / "elsewhere")
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        importing.import_sae(tmp_path / "x.safetensors")


def test_what_no_other_library_can_hold_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="no class for an untied W_mag"):
        exporting.export(GatedSAE(N, M, tie="none"), tmp_path, "saelens")
    with pytest.raises(ValueError, match="saelens, dictionary_learning"):
        exporting.export(GatedSAE(N, M), tmp_path, "saebench")


# Against the libraries themselves, in their own environment. Both directions run in one process:
# loading them is slow.

SCRIPT = """
import json, sys, warnings
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
warnings.filterwarnings("ignore")
root = Path(sys.argv[1])
x = load_file(root / "x.safetensors")["x"]
torch.manual_seed(3)

def keep(name, sae, x=x, **more):
    with torch.no_grad():
        f = sae.encode(x)
        save_file({"f": f.contiguous(), "x_hat": sae.decode(f).flatten(1).contiguous(), **more}, root / f"{name}.out")

def fill(sae):
    for p in sae.parameters():
        p.data = torch.randn(p.shape) * 0.7
    return sae

from sae_lens import SAE
for folder in sorted((root / "ours").glob("saelens-*")):
    heads = folder.name.endswith("attn_z")
    keep(folder.name, SAE.load_from_disk(folder), x.view(len(x), 1, -1) if heads else x)
from sae_lens import GatedSAE, GatedSAEConfig, StandardSAE, StandardSAEConfig
for name, cls, config in (("gated", GatedSAE, GatedSAEConfig), ("standard", StandardSAE, StandardSAEConfig)):
    for centred in (True, False):
        sae = fill(cls(config(d_in=x.shape[1], d_sae=11, apply_b_dec_to_input=centred)))
        folder = root / "theirs" / f"saelens-{name}-{centred}"
        sae.save_model(folder)
        with torch.no_grad():
            f = sae.encode(x)
            save_file({"f": f, "x_hat": sae.decode(f)}, root / f"{folder.name}.out")

from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder
from dictionary_learning.utils import load_dictionary
for folder in sorted((root / "ours").glob("dictionary_learning-*")):
    keep(folder.name, load_dictionary(str(folder), "cpu")[0])
for cls in (AutoEncoder, AutoEncoderNew, GatedAutoEncoder):
    sae = fill(cls(x.shape[1], 11))
    folder = root / "theirs" / f"dictionary_learning-{cls.__name__}"
    folder.mkdir(parents=True)
    torch.save(sae.state_dict(), folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": cls.__name__}}))
    with torch.no_grad():
        f = sae.encode(x)
        save_file({"f": f, "x_hat": sae.decode(f)}, root / f"{folder.name}.out")
"""


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    if not PEERS.exists():
        pytest.skip("SAELens and dictionary_learning are not installed: `make peers` does it")
    root = tmp_path_factory.mktemp("peers")
    save_file({"x": inputs()}, root / "x.safetensors")
    for dialect in exporting.DIALECTS:
        for arm in ARMS:
            exporting.export(
                trained(arm), root / "ours" / f"{dialect}-{arm}", dialect, hook_name(trained(arm))
            )
    z = trained("paper")
    z.about["run"]["site"] = "attn_z"
    exporting.export(z, root / "ours" / "saelens-attn_z", "saelens", hook_name(z))
    done = subprocess.run([PEERS, "-c", SCRIPT, root], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


OURS = [(dialect, arm) for dialect in exporting.DIALECTS for arm in ARMS] + [("saelens", "attn_z")]


@pytest.mark.parametrize("dialect, arm", OURS)
def test_the_libraries_run_our_exports_to_the_same_numbers(peers, dialect, arm):
    sae, x = trained("paper" if arm == "attn_z" else arm), inputs()
    got = load_file(peers / f"{dialect}-{arm}.out")
    f = sae.encode(x * SCALE) / SCALE
    close(got["f"], f)
    close(got["x_hat"], sae(x * SCALE) / SCALE)


THEIRS = [
    f"saelens-{name}-{centred}" for name in ("gated", "standard") for centred in (True, False)
]
THEIRS += [
    f"dictionary_learning-{name}" for name in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder")
]


@pytest.mark.parametrize("name", THEIRS)
def test_what_the_libraries_save_runs_here_to_the_same_numbers(peers, name):
    sae, x = importing.import_sae(peers / "theirs" / name), inputs()
    theirs = load_file(peers / f"{name}.out")
    close(sae.encode(x), theirs["f"])
    close(sae.decode(theirs["f"]), theirs["x_hat"])
