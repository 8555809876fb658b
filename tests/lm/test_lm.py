"""Language models: sites and logits against plain transformers, and cross-entropy with a site
replaced.
"""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import gsae.lm
from gsae.evidence import run as run_module
from gsae.lm import models as lms
from gsae.lm import names

B, T, V, D, HEADS, D_HEAD, D_MLP, LAYERS = 3, 11, 37, 24, 3, 8, 40, 3


def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", eos_token="w1", pad_token="w1"
    )


def plain(kind: str = "llama"):
    """A random model in transformers' format; weights large enough that every layer matters."""
    torch.manual_seed(1)
    shared = dict(vocab_size=V, hidden_size=D, intermediate_size=D_MLP, num_hidden_layers=LAYERS)
    shared |= dict(num_attention_heads=HEADS, max_position_embeddings=16, initializer_range=0.3)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shared, num_key_value_heads=1, head_dim=D_HEAD))
    elif (
        kind == "gemma"
    ):  # its trunk scales what it takes as embeddings; its heads are wider than d_model
        model = GemmaForCausalLM(GemmaConfig(**shared, num_key_value_heads=1, head_dim=16))
    else:  # attention and MLP in parallel
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**shared))
    return model.eval()


def native(**changes):
    """TransformerLens' own format: a GELU model with learned positions."""
    config = dict(
        d_model=D, d_head=D_HEAD, n_heads=HEADS, n_layers=LAYERS, n_ctx=16, d_vocab=V, d_mlp=D_MLP
    )
    config |= dict(act_fn="gelu", normalization_type="LN", seed=0, initializer_range=0.3)
    return TransformerBridge.boot_native(
        TransformerBridgeConfig(**config | changes), tokenizer=words()
    )


def wrap(model) -> lms.LM:
    model = copy.deepcopy(model)
    bridge = TransformerBridge.boot_transformers(
        "tiny", hf_model=model, tokenizer=words(), device="cpu"
    )
    return lms.LM(bridge, "tiny")


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference():
    return plain()


@pytest.fixture(scope="module")
def lm(reference):
    return wrap(reference)


def place(model, site: str, layer: int):
    """The module of a plain Llama or Gemma, and whether the site is its input or its output."""
    block = model.model.layers[layer]
    return {
        "mlp_out": (block.mlp, "out"),
        "resid_post": (block, "out"),
        "attn_z": (block.self_attn.o_proj, "in"),
        "mlp_neurons": (block.mlp.down_proj, "in"),
    }[site]


@torch.no_grad()
def run(model, tokens, site, layer, change=lambda x: x):
    """Logits and the site's activation of a plain model, the activation replaced by `change` of
    it.
    """
    seen = {}
    module, side = place(model, site, layer)

    def swap(x):
        seen["x"] = x
        return change(x)

    if side == "in":
        handle = module.register_forward_pre_hook(lambda m, args: (swap(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda m, args, out: swap(out))
    logits = model(tokens, use_cache=False).logits
    handle.remove()
    return logits, seen["x"]


def loss(logits, tokens, first: int = 1):
    """Summed cross-entropy of each block, predictions at positions `first` and later, one target at
    a time.
    """
    log_p = logits.double().log_softmax(-1)
    pairs = [[-log_p[b, t, tokens[b, t + 1]] for t in range(first, T - 1)] for b in range(B)]
    return torch.tensor([float(sum(row)) for row in pairs])


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def test_logits_are_those_of_transformers(lm, reference, tokens):
    close(lm.bridge(tokens, return_type="logits"), reference(tokens).logits.detach())


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_every_site_is_the_activation_of_the_plain_model(kind, tokens):
    model = plain(kind)
    ours = wrap(model)
    keys = [(site, layer) for site in names.SITES for layer in range(LAYERS)]
    found = ours.activations(tokens, keys)
    assert set(found) == set(keys)
    for site, layer in keys:
        assert found[site, layer].shape == (B, T, ours.d(site))
        close(found[site, layer], run(model, tokens, site, layer)[1])
    assert ours.d("attn_z") == HEADS * (D_HEAD if kind == "llama" else 16)
    assert ours.d("mlp_neurons") == D_MLP and ours.d("mlp_out") == D


def test_the_forward_stops_at_the_deepest_hooked_layer(lm, tokens):
    ran = []
    parts = {f"block {i}": block.mlp for i, block in enumerate(lm.bridge.blocks)} | {
        "unembed": lm.bridge.unembed
    }
    handles = [
        m.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, m in parts.items()
    ]
    lm.activations(tokens, [("attn_z", 0), ("mlp_out", 1)])
    first = list(ran)
    lm.activations(tokens, [("resid_post", LAYERS - 1)])  # no unembedding after the last layer
    last = ran[len(first) :]
    lm.activations(tokens, [("attn_z", 2)])  # nothing after the attention of its own layer
    [handle.remove() for handle in handles]
    # The hook fires inside the module's own forward, so a module that is left by it does not count
    # as run.
    assert first == ["block 0"] and last == ["block 0", "block 1", "block 2"]
    assert ran[len(first) + len(last) :] == ["block 0", "block 1"]
    close(
        lm.splice(tokens, "mlp_out", 1).ce(), lm.splice(tokens, "attn_z", 2).ce()
    )  # and nothing stays behind


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("site", names.SITES)
def test_eq5_cross_entropy_with_a_site_replaced_is_that_of_a_full_pass(
    lm, reference, tokens, site, layer
):
    splice = lm.splice(tokens, site, layer)
    clean, x = run(reference, tokens, site, layer)
    close(splice.clean, x)
    close(splice.ce(), loss(clean, tokens), atol=1e-3)
    close(splice.ce(splice.clean), splice.ce())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    mean = x[:, 1:].mean((0, 1))
    for replacement in (torch.zeros_like(x), mean.expand_as(x), x + noise):

        def change(value, new=replacement):
            return torch.cat([value[:, :1], new[:, 1:]], dim=1)  # position 0 stays clean

        expected = loss(run(reference, tokens, site, layer, change)[0], tokens)
        close(splice.ce(replacement), expected, atol=1e-3)
        assert (splice.ce(replacement) - splice.ce()).abs().max() > 0.01
    assert splice.targets == T - 2


@pytest.fixture(scope="module")
def others():
    return {
        "gemma": wrap(plain("gemma")),
        "neox": wrap(plain("neox")),
        "native": lms.LM(native(), "native"),
    }


@pytest.mark.parametrize("kind", ["gemma", "neox", "native"])
@pytest.mark.parametrize("site", names.SITES)
def test_other_architectures_rerun_to_the_same_loss_as_a_full_pass(others, kind, site, tokens):
    ours = others[kind]
    splice = ours.splice(tokens, site, 1)
    new = splice.clean * 0.5
    new[:, 0] = splice.clean[:, 0]
    with ours.bridge.hooks(
        fwd_hooks=[(names.hook(site, 1), lambda value, hook: new.view(value.shape))]
    ):
        expected = loss(ours.bridge(tokens, return_type="logits"), tokens)
    close(splice.ce(splice.clean * 0.5), expected, atol=1e-3)
    assert (expected - splice.ce()).abs().max() > 0.01


def test_a_replacement_reruns_only_the_layers_above_and_leaves_the_model_as_it_was(
    lm, reference, tokens
):
    splice = lm.splice(tokens, "resid_post", 1)
    ran = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(lm.bridge.blocks)
    ]
    splice.ce(torch.zeros_like(splice.clean))
    [handle.remove() for handle in handles]
    assert ran == [2]
    close(lm.bridge(tokens, return_type="logits"), reference(tokens).logits.detach())


@pytest.fixture(scope="module")
def sink():
    """A model whose first position is huge everywhere in the residual stream, as in real models."""
    bridge = native()
    with torch.no_grad():
        bridge.original_model.pos.weight[0] *= 3000
    return lms.LM(bridge, "sink")


def test_position_0_keeps_its_clean_activation_and_is_not_counted(sink, tokens):
    splice = sink.splice(tokens, "resid_post", 1)
    norms = splice.clean.square().sum(-1)
    assert norms[:, 0].sum() / norms.sum() > 0.99
    seen = []
    with sink.bridge.hooks(
        fwd_hooks=[("blocks.2.hook_resid_pre", lambda value, hook: seen.append(value))]
    ):
        zero = splice.ce(torch.zeros_like(splice.clean))
    close(seen[0][:, 0], splice.clean[:, 0])
    assert not seen[0][:, 1:].any()
    other = torch.zeros_like(splice.clean)
    other[:, 0] = torch.arange(D)  # what a replacement says about position 0 makes no difference
    assert torch.equal(splice.ce(other), zero)

    everywhere = sink.splice(tokens, "resid_post", 1, keep_pos0=True)
    assert everywhere.targets == T - 1
    close(
        everywhere.ce(), loss(sink.bridge(tokens, return_type="logits"), tokens, first=0), atol=1e-3
    )
    assert not torch.equal(everywhere.ce(other), everywhere.ce(torch.zeros_like(other)))


def test_bf16_trunk_sums_the_loss_in_fp32(reference, tokens):
    low = wrap(copy.deepcopy(reference).bfloat16())
    splice = low.splice(tokens, "mlp_out", 1)
    assert low.dtype == splice.clean.dtype == torch.bfloat16
    assert splice.ce().dtype == torch.float32
    expected = loss(low.bridge(tokens, return_type="logits"), tokens)
    close(splice.ce(splice.clean.float()), expected, atol=1e-3)


def test_errors_say_what_was_expected(lm, tokens):
    with pytest.raises(ValueError, match="unknown site 'mlp'.*mlp_out, attn_z"):
        lm.activations(tokens, [("mlp", 0)])
    with pytest.raises(ValueError, match="no layer 3: expected 0 to 2"):
        lm.splice(tokens, "mlp_out", 3)
    with pytest.raises(ValueError, match="at most 16 tokens, got blocks of 17"):
        lm.activations(torch.zeros(1, 17, dtype=torch.long), [("mlp_out", 0)])
    with pytest.raises(ValueError, match=r"expected \(3, 11, 24\)"):
        lm.splice(tokens, "mlp_out", 0).ce(torch.zeros(B, T, D + 1))


def test_the_rooms_of_runs_and_of_language_models_know_the_same_sites():
    assert run_module.SITES == names.SITES == gsae.lm.SITES


def test_the_names_that_the_room_hands_on_exist():
    assert all(hasattr(gsae.lm, name) for name in gsae.lm.__all__)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline hub whose cache is laid out as the client lays it out; returns a function that
    adds a repository.
    """
    import huggingface_hub.constants as constants

    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def add(repository: str):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        commit = next(
            (s.revision for s in names.NAMES.values() if s.source == repository), "a" * 40
        )
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        return snapshot

    return add


@pytest.mark.parametrize(
    "name, kind", [("pythia-2.8b", "neox"), ("gemma-7b", "gemma"), ("someone/tiny", "llama")]
)
def test_hub_models_load_by_name(hub, tokens, name, kind):
    model = plain(kind)
    folder = hub(names.NAMES[name].source if name in names.NAMES else name)
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    ours = lms.load(name, device="cpu", dtype="float32")
    close(ours.bridge(tokens, return_type="logits"), model(tokens).logits.detach())
    assert ours.name == name and ours.dtype == torch.float32
    assert ours.context == (names.NAMES[name].context if name in names.NAMES else 16)
    text = "w3 w4 w5"
    assert ours.tokenizer(text).input_ids == lms.tokenizer(name)(text).input_ids == [3, 4, 5]


def test_gelu_1l_loads_from_transformer_lens_old_format(hub, tokens):
    # The forward pass of a one-layer GELU transformer, written out from its weights in the old
    # format.
    random = torch.Generator().manual_seed(3)
    w = {
        "embed.W_E": (V, D),
        "pos_embed.W_pos": (16, D),
        "blocks.0.ln1.w": (D,),
        "blocks.0.ln1.b": (D,),
        "blocks.0.attn.W_Q": (HEADS, D, D_HEAD),
        "blocks.0.attn.W_K": (HEADS, D, D_HEAD),
        "blocks.0.attn.W_V": (HEADS, D, D_HEAD),
        "blocks.0.attn.W_O": (HEADS, D_HEAD, D),
        "blocks.0.attn.b_Q": (HEADS, D_HEAD),
        "blocks.0.attn.b_K": (HEADS, D_HEAD),
        "blocks.0.attn.b_V": (HEADS, D_HEAD),
        "blocks.0.attn.b_O": (D,),
        "blocks.0.ln2.w": (D,),
        "blocks.0.ln2.b": (D,),
        "blocks.0.mlp.W_in": (D, D_MLP),
        "blocks.0.mlp.b_in": (D_MLP,),
        "blocks.0.mlp.W_out": (D_MLP, D),
        "blocks.0.mlp.b_out": (D,),
        "ln_final.w": (D,),
        "ln_final.b": (D,),
        "unembed.W_U": (D, V),
    }
    w = {name: torch.randn(shape, generator=random) * 0.3 for name, shape in w.items()}

    def norm(x, name):
        return F.layer_norm(x, (D,), w[f"{name}.w"], w[f"{name}.b"], eps=1e-5)

    x = w["embed.W_E"][tokens] + w["pos_embed.W_pos"][:T]
    q, k, v = (
        torch.einsum("btd,hde->bhte", norm(x, "blocks.0.ln1"), w[f"blocks.0.attn.W_{i}"])
        + w[f"blocks.0.attn.b_{i}"][:, None]
        for i in "QKV"
    )
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + torch.einsum("bhte,hed->btd", z, w["blocks.0.attn.W_O"]) + w["blocks.0.attn.b_O"]
    neurons = F.gelu(norm(x, "blocks.0.ln2") @ w["blocks.0.mlp.W_in"] + w["blocks.0.mlp.b_in"])
    x = x + neurons @ w["blocks.0.mlp.W_out"] + w["blocks.0.mlp.b_out"]
    logits = norm(x, "ln_final") @ w["unembed.W_U"]

    folder = hub(names.NAMES["gelu-1l"].source)
    torch.save(w, folder / "model_final.pth")
    config = dict(
        d_model=D, n_layers=1, d_mlp=D_MLP, d_head=D_HEAD, n_heads=HEADS, n_ctx=16, d_vocab=V
    )
    config |= dict(
        act_fn="gelu", attn_only=False, normalization="LN", tokenizer_name="someone/words"
    )
    (folder / "config.json").write_text(json.dumps(config))
    words().save_pretrained(vocabulary := hub("someone/words"))
    # how the client remembers: no such file there
    absent = vocabulary.parents[1] / ".no_exist" / vocabulary.name
    absent.mkdir(parents=True)
    (absent / "config.json").touch()
    ours = lms.load("gelu-1l", device="cpu", dtype="float32")
    close(ours.bridge(tokens, return_type="logits"), logits)
    close(ours.activations(tokens, [("mlp_neurons", 0)])["mlp_neurons", 0], neurons)
    assert lms.tokenizer("gelu-1l")("w3 w4").input_ids == [3, 4]


def test_a_model_that_cannot_be_had_is_named_with_the_remedy(hub):
    with pytest.raises(
        lms.ModelError,
        match=r"'gemma-7b' \(google/gemma-7b\): offline mode is on.*hf download .*google/gemma-7b",
    ):
        lms.load("gemma-7b", device="cpu")
    with pytest.raises(lms.ModelError, match="'gelu-1l'"):
        lms.load("gelu-1l", device="cpu")


def test_a_splice_leaves_what_accelerate_put_into_a_layer(tokens):
    """Spread over GPUs, a layer's `forward` is one of the instance, which brings its inputs to its
    GPU.
    """
    model = wrap(plain("llama"))
    layer, calls = model.bridge.blocks[0].original_component, []
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: (calls.append(1), forward(*args, **kwargs))[1]
    placed = layer.forward
    splice = model.splice(tokens, "resid_post", 1)
    before = len(calls)
    splice.ce(splice.clean)
    assert (
        layer.forward is placed
        and "forward" not in model.bridge.blocks[1].original_component.__dict__
    )
    assert before == len(calls) == 1  # skipped, and back
    model.bridge(tokens)
    assert len(calls) == 2


def test_old_gpus_load_in_float32(hub, monkeypatch):
    """A T4 emulates bfloat16, at a fraction of its speed."""
    folder, asked = hub("someone/tiny"), []
    plain("llama").save_pretrained(folder)
    words().save_pretrained(folder)
    load = lms.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        lms.AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **k: (asked.append(k["dtype"]), load(*a, **k))[1],
    )
    monkeypatch.setattr(
        lms.TransformerBridge, "boot_transformers", lambda *a, **k: pytest.fail("far enough")
    )
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    for fast in (True, False):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, fast=fast: fast or including_emulation,
        )
        with pytest.raises(pytest.fail.Exception, match="far enough"):
            lms.load("someone/tiny", device="cuda")
    assert asked == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("options", [{"device_map": {"": "cpu"}}, {"device": "auto-split"}])
def test_a_model_placed_by_a_device_map_is_the_same_model(hub, tokens, options, monkeypatch):
    model = plain("llama")
    folder = hub("someone/tiny")
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    seen, load = [], lms.AutoModelForCausalLM.from_pretrained
    keep = lambda *a, **k: (seen.append(k.get("device_map")), load(*a, **k))[1]
    monkeypatch.setattr(lms.AutoModelForCausalLM, "from_pretrained", keep)
    ours = lms.load("someone/tiny", dtype="float32", **options)
    assert seen == [options.get("device_map", "auto")]
    close(ours.bridge(tokens, return_type="logits"), model(tokens).logits.detach())
    key = ("mlp_out", 1)
    clean = lms.load("someone/tiny", device="cpu", dtype="float32")
    close(ours.activations(tokens, [key])[key], clean.activations(tokens, [key])[key])
    close(ours.splice(tokens, *key).ce(None), clean.splice(tokens, *key).ce(None))
