"""The hub as a user meets it: models and text by name through the whole of chapter 04, sharing, and
every refusal.
"""

import hashlib
import json
import os
import random
import re
import shutil

import datasets.config
import huggingface_hub.constants as constants
import pytest
import torch
import transformers.utils.hub
import zstandard
from hub_server import COMMIT, HubServer
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

import gsae
from gsae.cli import main
from gsae.evidence.run import Run, both, grid
from gsae.experiments import share, sweeps
from gsae.lm import corpus
from gsae.lm import models as lms
from gsae.lm import names as lm_names
from gsae.saes import files as files_module
from gsae.system import hub_access

V, D, D_MLP, HEADS, CONTEXT = 37, 24, 40, 3, 16
TINY = dict(
    context=CONTEXT, M=32, tokens=2048, batch=128, resample=(), eval_tokens=600, ce_tokens=480
)
TOKEN = "hf_of_the_test"


# Repositories, as folders.


def words(folder):
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="w1", pad_token="w1"
    ).save_pretrained(folder)


def transformers_model(folder, kind):
    torch.manual_seed(1)
    shared = dict(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=D_MLP,
        num_hidden_layers=2,
        initializer_range=0.3,
    )
    shared |= dict(num_attention_heads=HEADS, max_position_embeddings=CONTEXT)
    if kind == "gemma":
        model = GemmaForCausalLM(GemmaConfig(**shared, num_key_value_heads=1, head_dim=16))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**shared))
    model.save_pretrained(folder)
    words(folder)


def gelu_1l(folder):
    """A random model in the old format of TransformerLens: a pickle of tensors and a config without
    a model type.
    """
    head = D // HEADS
    generator = torch.Generator().manual_seed(3)
    w = {
        "embed.W_E": (V, D),
        "pos_embed.W_pos": (CONTEXT, D),
        "unembed.W_U": (D, V),
        "blocks.0.attn.b_O": (D,),
    }
    for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_final"):
        w |= {f"{norm}.w": (D,), f"{norm}.b": (D,)}
    for i in "QKV":
        w |= {f"blocks.0.attn.W_{i}": (HEADS, D, head), f"blocks.0.attn.b_{i}": (HEADS, head)}
    w |= {
        "blocks.0.attn.W_O": (HEADS, head, D),
        "blocks.0.mlp.W_in": (D, D_MLP),
        "blocks.0.mlp.b_in": (D_MLP,),
    }
    w |= {"blocks.0.mlp.W_out": (D_MLP, D), "blocks.0.mlp.b_out": (D,)}
    folder.mkdir()
    w = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in w.items()}
    torch.save(w, folder / "model_final.pth")
    config = dict(
        d_model=D, n_layers=1, d_mlp=D_MLP, d_head=head, n_heads=HEADS, n_ctx=CONTEXT, d_vocab=V
    )
    config |= dict(
        act_fn="gelu", attn_only=False, normalization="LN", tokenizer_name="someone/words"
    )
    (folder / "config.json").write_text(json.dumps(config))


TEXT_CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: data/train.jsonl.zst}, {split: validation, path: data/validation.jsonl}]
- config_name: short
  data_files: [{split: train, path: data/validation.jsonl}]
---
"""
PINS = {spec.source: spec.revision for spec in lm_names.NAMES.values() if spec.source}


def text(folder):
    """Train compressed as the default text of the scales gpu and paper is."""
    rng = random.Random(0)
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(TEXT_CARD)
    for split, rows in (("train", 90), ("validation", 30)):
        lines = [
            " ".join(f"w{min(int(rng.expovariate(0.15)), V - 1)}" for _ in range(40))
            for _ in range(rows)
        ]
        written = "\n".join(json.dumps({"text": line}) for line in lines).encode()
        path = folder / "data" / f"{split}.jsonl{'.zst' * (split == 'train')}"
        path.write_bytes(zstandard.compress(written) if split == "train" else written)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    transformers_model(root / "neox", "neox")
    transformers_model(root / "gemma", "gemma")
    gelu_1l(root / "gelu")
    (root / "words").mkdir()
    words(root / "words")
    text(root / "text")
    return {
        "EleutherAI/pythia-2.8b": root / "neox",
        "google/gemma-7b": root / "gemma",
        "someone/words": root / "words",
        "NeelNanda/GELU_1L512W_C4_Code": root / "gelu",
        "datasets/some/dataset": root / "text",
    }


# A machine: its caches, and the hub out of reach or served from this process.


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path / "evidence"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


@pytest.fixture
def offline(machine, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return machine


@pytest.fixture
def served(machine, monkeypatch):
    server = HubServer()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(
        transformers.utils.hub, "_hf_api", None, raising=False
    )  # keeps the address of its first use
    yield server
    server.close()


def cached(repo, folder, commit="a" * 40, ref="main"):
    """Lay a folder out as the hub client does: blobs by hash, a snapshot of links to them, a
    ref.
    """
    kind, name = (
        ("dataset", repo.removeprefix("datasets/"))
        if repo.startswith("datasets/")
        else ("model", repo)
    )
    root = constants.HF_HUB_CACHE + f"/{kind}s--{name.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{commit}", f".no_exist/{commit}"):
        os.makedirs(f"{root}/{part}", exist_ok=True)
    with open(f"{root}/refs/{ref}", "w") as file:
        file.write(commit)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        blob = f"{root}/blobs/{hashlib.sha256(path.read_bytes()).hexdigest()}"
        shutil.copy(path, blob)
        link = f"{root}/snapshots/{commit}/{path.relative_to(folder)}"
        os.makedirs(os.path.dirname(link), exist_ok=True)
        os.symlink(os.path.relpath(blob, os.path.dirname(link)), link)
    if not (folder / "config.json").exists():  # the client remembers that it asked in vain
        open(f"{root}/.no_exist/{commit}/config.json", "w").close()


def chapter_04(lm, site="mlp_out", layer=0, dataset="some/dataset"):
    """The runs of chapter 04 on another model and text, at sizes for a test. (The models of these
    names are tiny here: `force` goes past the estimate for the real ones.)"""
    return both(grid(Run(lm=lm, site=site, layer=layer, text=dataset, **TINY), lam=[0.1, 0.4]))


def plain_ce(folder, dataset):
    """Cross-entropy of the plain model in nats per token, predictions at positions 1 and later."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    blocks = corpus.hub_blocks(
        tokenizer, str(dataset), CONTEXT, TINY["ce_tokens"] // CONTEXT, split="validation"
    )
    tokens = torch.as_tensor(blocks.with_format("torch")["tokens"][:]).long()
    with torch.no_grad():
        log_p = model(tokens).logits.double().log_softmax(-1)[:, 1:-1]
    return float(-log_p.gather(-1, tokens[:, 2:, None]).mean())


@pytest.mark.parametrize(
    "name, source, site",
    [
        ("gelu-1l", "NeelNanda/GELU_1L512W_C4_Code", "mlp_neurons"),
        ("EleutherAI/pythia-2.8b", "EleutherAI/pythia-2.8b", "mlp_out"),
        ("gemma-7b", "google/gemma-7b", "attn_z"),
    ],
)
def test_chapter_04_runs_on_a_hub_model_and_text_from_the_cache(
    offline, repositories, monkeypatch, name, source, site
):
    pin = PINS[source] if name in lm_names.NAMES else "a" * 40
    cached(source, repositories[source], pin, ref="main" if name not in lm_names.NAMES else "newer")
    for repo in ("someone/words", "datasets/some/dataset"):
        cached(repo, repositories[repo])
    runs = chapter_04(name, site)
    table = gsae.run(runs, scale="smoke", force=True)
    assert list(table["status"]) == ["done"] * 4 and list(table["arch"]) == [
        "gated",
        "gated",
        "baseline",
        "baseline",
    ]
    assert (table["l0"] > 0).all() and table["ce_zero"].notna().all()
    assert table["provenance"].map(lambda p: p["lm_commit"]).tolist() == [pin] * 4
    assert sorted(p.stem for p in (offline / "evidence").rglob("*.json")) == sorted(
        r.id for r in runs
    )
    if name != "gelu-1l":  # bfloat16 where the processor has it
        expected = plain_ce(repositories[source], repositories["datasets/some/dataset"])
        assert table["ce_clean"].tolist() == pytest.approx([expected] * 4, rel=0.02)
    sae = gsae.load(runs[0].id)
    assert (sae.M, sae.about["run"]["lm"]) == (32, name)

    monkeypatch.setattr(lms, "load", lambda *args: pytest.fail("what is on record needs no model"))
    again = gsae.run(runs, scale="smoke", force=True)
    assert again["l0"].tolist() == table["l0"].tolist()


def test_chapter_04_runs_over_the_network_with_the_token_in_every_request(
    served, repositories, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    served.folders = repositories
    runs = chapter_04(f"EleutherAI/pythia-2.8b@{COMMIT}", dataset=f"some/dataset@{COMMIT}")[:1]
    runs += chapter_04(f"gelu-1l@{COMMIT}", "mlp_neurons", dataset=f"some/dataset@{COMMIT}")[:1]
    table = gsae.run(runs, scale="smoke", force=True)
    assert list(table["status"]) == ["done"] * 2
    assert table["provenance"].map(lambda p: p["lm_commit"]).tolist() == [COMMIT] * 2
    asked = " ".join(path for path, _ in served.seen)
    assert all(repo in asked for repo in repositories if repo != "google/gemma-7b")
    assert [seen for seen in served.seen if seen[1] != f"Bearer {TOKEN}"] == []


def test_a_revision_is_part_of_the_name_or_pinned(offline, repositories, monkeypatch):
    cached("EleutherAI/pythia-2.8b", repositories["EleutherAI/pythia-2.8b"])
    cached("EleutherAI/pythia-2.8b", repositories["google/gemma-7b"], "b" * 40, ref="step3")
    assert (
        lms.load("EleutherAI/pythia-2.8b", "cpu").commit == "a" * 40
    )  # a name of the hub's own: its newest
    with pytest.raises(
        lms.ModelError, match=f"hf download --revision {PINS['EleutherAI/pythia-2.8b']} EleutherAI"
    ):
        lms.load("pythia-2.8b", "cpu")
    cached(
        "EleutherAI/pythia-2.8b",
        repositories["google/gemma-7b"],
        PINS["EleutherAI/pythia-2.8b"],
        ref="pinned",
    )
    cached(
        "NeelNanda/GELU_1L512W_C4_Code",
        repositories["NeelNanda/GELU_1L512W_C4_Code"],
        "d" * 40,
        ref="old",
    )
    cached("someone/words", repositories["someone/words"])
    assert lms.load("pythia-2.8b", "cpu").commit == PINS["EleutherAI/pythia-2.8b"]
    for revision in ("step3", "b" * 40):
        other = lms.load(f"pythia-2.8b@{revision}", "cpu")
        assert other.commit == "b" * 40 and type(other.bridge.original_model) is GemmaForCausalLM
        assert other.context == 2048  # the named model's
    assert lms.load("gelu-1l@old", "cpu").commit == "d" * 40
    with pytest.raises(lms.ModelError, match="GELU_1L512W_C4_Code is not in"):
        lms.load("gelu-1l", "cpu")
    monkeypatch.setitem(lm_names.TOKENIZERS, "someone/words", "e" * 40)  # a pinned tokenizer
    with pytest.raises(lms.ModelError):
        lms.tokenizer("gelu-1l@old")
    cached("someone/words", repositories["someone/words"], "e" * 40, ref="pinned")
    assert lms.tokenizer("gelu-1l@old")("w3").input_ids == [3]
    monkeypatch.setitem(
        lm_names.NAMES, "pythia-2.8b", lm_names.NAMES["pythia-2.8b"]._replace(revision="step3")
    )
    assert lms.load("pythia-2.8b", "cpu").commit == "b" * 40
    assert lms.load("pythia-2.8b@main", "cpu").commit == "a" * 40
    one, other = Run(lm="pythia-2.8b@step3"), Run(lm="pythia-2.8b@main")
    assert one.id != other.id


def test_what_the_scales_read_from_the_hub_is_pinned():
    commit = re.compile("[0-9a-f]{40}")
    assert len(PINS) == 3 and all(
        commit.fullmatch(pin) for pin in [*PINS.values(), *lm_names.TOKENIZERS.values()]
    )
    for at in ("gpu", "paper"):
        for run in sweeps.runs("pareto", at):
            assert commit.fullmatch(hub_access.split(run.text)[1]) and run.lm in lm_names.NAMES


def test_a_path_is_no_revision(tmp_path):
    (tmp_path / "model@home").mkdir()
    assert hub_access.split(str(tmp_path / "model@home")) == (str(tmp_path / "model@home"), None)
    assert hub_access.split("owner/name@v1") == ("owner/name", "v1") and hub_access.split(
        "gelu-1l"
    ) == (
        "gelu-1l",
        None,
    )


def test_text_is_chosen_by_config_and_split(offline, repositories):
    cached("datasets/some/dataset", repositories["datasets/some/dataset"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(repositories["someone/words"])

    def first(dataset, split):
        return corpus.hub_blocks(tokenizer, dataset, 8, 3, split=split)["tokens"][:].tolist()

    held_out = first("some/dataset", "validation")
    assert (
        first("some/dataset", ("test", "validation")) == held_out != first("some/dataset", "train")
    )
    assert (
        first("some/dataset:short", "train")
        == first("some/dataset:short@main", "train")
        == held_out
    )
    with pytest.raises(
        corpus.CorpusError,
        match="no split test or dev, only train, validation.*not trained on: take",
    ):
        first("some/dataset", ("test", "dev"))
    with pytest.raises(corpus.CorpusError, match="no split other, only train$"):
        first("some/dataset:short", "other")
    with pytest.raises(corpus.CorpusError, match="'other' not found. Available: .*short"):
        first("some/dataset:other", "train")


def test_text_is_read_once_for_a_language_model_and_size(machine, repositories, monkeypatch):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(repositories["someone/words"])
    folder, reads, stream = str(repositories["datasets/some/dataset"]), [], corpus.stream
    monkeypatch.setattr(corpus, "stream", lambda *args: reads.append(args[3]) or stream(*args))
    for name, count in (("a", 3), ("a", 3), ("b", 3), ("a", 5), ("a", 3)):
        blocks = corpus.hub_blocks(tokenizer, folder, 8, count, name=name)
        assert blocks["tokens"][:].shape == (count, 8)
    assert reads == [3, 3, 5]


@pytest.mark.parametrize("documents", [1, 7, 1000])
def test_text_is_written_piece_by_piece_to_the_same_blocks(
    machine, repositories, monkeypatch, documents
):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(repositories["someone/words"])
    folder = repositories["datasets/some/dataset"]
    lines = (
        zstandard.decompress((folder / "data" / "train.jsonl.zst").read_bytes())
        .decode()
        .splitlines()
    )
    ids = sum(
        (tokenizer(json.loads(line)["text"] + corpus.SEPARATOR).input_ids for line in lines), []
    )
    tokenizer.backend_tokenizer.enable_padding(length=64)  # as some tokenizer files have it
    tokenizer.backend_tokenizer.enable_truncation(16)
    monkeypatch.setattr(corpus, "DOCUMENTS", documents)
    pieces = list(corpus.stream(tokenizer, str(folder), 9, 101, "train", "text"))
    assert (len(pieces) > 2) == (documents < 1000) and sum(map(len, pieces)) == 101
    for name in (None, "a"):
        blocks = corpus.hub_blocks(tokenizer, str(folder), 9, 101, name=name)
        assert blocks["tokens"][:].flatten().tolist() == ids[: 9 * 101]
    assert blocks.cache_files  # read from disk as it is needed, not held in memory
    with pytest.raises(
        corpus.CorpusError, match=f"{len(ids) // 9} of 999 blocks were read and then it ended"
    ):
        corpus.hub_blocks(tokenizer, str(folder), 9, 999, name="a")
    assert len(list((machine / "cache" / "corpus").glob("hub-*"))) == 1  # nothing half-made


# Refusals: each says which of them it is, and what to do.

GATED = (
    r"google/gemma-7b is gated: accept its licence at http://\S+/google/gemma-7b, then log in "
    r"with `hf auth login`"
)
REFUSALS = [
    ("gated, no token", {"google/gemma-7b": (401, "GatedRepo")}, None, GATED),
    (
        "gated, with a token",
        {"google/gemma-7b": (403, "GatedRepo")},
        TOKEN,
        "is gated.*account that has",
    ),
    ("not there", {}, None, "no model google/gemma-7b that you may read.*if it is private, log in"),
    (
        "not there, with a token",
        {},
        TOKEN,
        "no model google/gemma-7b.*the token in use may not see it",
    ),
    (
        "no right",
        {"google/gemma-7b": (403, "")},
        TOKEN,
        r"refused \(403\); the token in use does not permit",
    ),
    ("bad token", {"google/gemma-7b": (401, "")}, TOKEN, "no model google/gemma-7b|refused .401."),
]


@pytest.mark.parametrize(
    "refused, token, message", [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_a_refusal_of_the_hub_is_told_in_words(served, monkeypatch, refused, token, message):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    served.refused = refused
    with pytest.raises(lms.ModelError, match=f"(?s)'gemma-7b'.*{message}.*need no hub"):
        lms.load("gemma-7b", "cpu")
    with pytest.raises(
        files_module.HubError, match=f"(?s)cannot pull google/gemma-7b: .*{message}"
    ):
        gsae.load("google/gemma-7b")


def test_a_gated_or_missing_data_set_is_told_in_words(served, repositories):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(repositories["someone/words"])
    served.refused = {"datasets/some/gated": (401, "GatedRepo")}
    with pytest.raises(
        corpus.CorpusError, match="some/gated is gated.*/datasets/some/gated, then log in"
    ):
        corpus.hub_blocks(tokenizer, "some/gated", 8, 3)
    with pytest.raises(corpus.CorpusError, match="no dataset some/nothing that you may read"):
        corpus.hub_blocks(tokenizer, "some/nothing", 8, 3)


def test_a_revision_that_is_not_there_is_told_in_words(served, repositories):
    served.folders = repositories
    with pytest.raises(lms.ModelError, match=r"pythia-2.8b has no such revision: .*/tree/main"):
        lms.load("pythia-2.8b@nowhere", "cpu")


def test_no_network_and_offline_mode_are_told_apart(served, repositories, monkeypatch):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(repositories["someone/words"])
    served.close()
    for error, call in (
        (lms.ModelError, lambda: lms.load("gemma-7b", "cpu")),
        (files_module.HubError, lambda: gsae.load("google/gemma-7b")),
        (corpus.CorpusError, lambda: corpus.hub_blocks(tokenizer, "google/gemma-7b", 8, 3)),
    ):
        with (
            monkeypatch.context() as patch,
            pytest.raises(error, match="could not be reached: check the network"),
        ):
            patch.setattr("time.sleep", lambda seconds: None)  # between the client's own attempts
            call()
        with (
            monkeypatch.context() as patch,
            pytest.raises(error, match="offline mode is on.*`hf download.*gemma-7b`"),
        ):
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
            patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
            call()


# Sharing.


@pytest.fixture
def trained(offline, repositories):
    for repo in ("EleutherAI/pythia-2.8b", "datasets/some/dataset"):
        cached(repo, repositories[repo])
    run = chapter_04("EleutherAI/pythia-2.8b")[0]
    return run, gsae.run([run], scale="smoke", force=True).iloc[0]


class FakeApi:
    """Stands where the hub's client stands, and keeps what it is given."""

    def __init__(self, **options):
        FakeApi.calls = [("init", options)]

    def create_repo(self, repo, **options):
        FakeApi.calls.append(("create_repo", {"repo": repo, **options}))

    def upload_folder(self, *, folder_path, **options):
        shutil.copytree(folder_path, FakeApi.kept)
        FakeApi.calls.append(("upload_folder", options))
        return "https://hub/owner/name/commit/1"


def test_what_is_pushed_is_what_is_pulled(trained, tmp_path, monkeypatch, capsys):
    run, row = trained
    FakeApi.kept = tmp_path / "uploaded"
    monkeypatch.setattr(share, "HfApi", FakeApi)
    assert main(["push", run.id, "owner/name", "--private"]) == 0
    assert "https://hub/owner/name/commit/1" in capsys.readouterr().out
    names = [name for name, _ in FakeApi.calls]
    assert names == ["init", "create_repo", "upload_folder"]
    assert FakeApi.calls[1][1] == {"repo": "owner/name", "private": True, "exist_ok": True}
    assert not any(
        "token" in options for _, options in FakeApi.calls
    )  # the client's own: HF_TOKEN or the login
    files = {p.name for p in FakeApi.kept.iterdir()}
    assert files == {"sae.safetensors", "config.json", "evidence.json", "README.md"}

    cached("owner/name", FakeApi.kept)
    cached("owner/name", FakeApi.kept, "b" * 40, ref="v1")
    sae = gsae.load(run.id)
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(0))
    for name in (
        "owner/name",
        "hub:owner/name",
        "owner/name@v1",
        FakeApi.kept,
        FakeApi.kept / "sae.safetensors",
    ):
        other = gsae.load(name)
        assert torch.equal(other.encode(x), sae.encode(x)) and other.about == sae.about
    assert json.loads((FakeApi.kept / "config.json").read_text())["arch"] == "gated"
    assert json.loads((FakeApi.kept / "evidence.json").read_text())["metrics"]["l0"] == row["l0"]

    assert main(["pull", "owner/name@v1"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"snapshots/{'b' * 40}")
    assert main(["export", "owner/name", str(tmp_path / "out"), "--to", "saelens"]) == 0
    state = load_file(tmp_path / "out" / "sae_weights.safetensors")
    torch.testing.assert_close(state["b_dec"], sae.b_dec.detach() / sae.about["scale"])
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back.safetensors")]) == 0
    scale, back = sae.about["scale"], gsae.load(tmp_path / "back.safetensors")
    torch.testing.assert_close(back(x), sae(x * scale) / scale)


def test_the_card_has_the_numbers_of_the_record_and_runs_as_written(trained, tmp_path, monkeypatch):
    run, row = trained
    folder = share.build(run.id, tmp_path / "build", "owner/name", licence="cc-by-4.0")
    card = (folder / "README.md").read_text()
    header = card.split("---\n")[1]
    assert "license: cc-by-4.0" in header and "base_model: EleutherAI/pythia-2.8b" in header
    assert (
        "- some/dataset" in header
        and "library_name: gsae" in header
        and "- arxiv:2404.16014\n" in header
    )
    for key in ("l0", "loss_recovered", "delta_ce", "gamma", "fvu"):
        line = next(
            line for line in card.splitlines() if line.startswith(f"| {share.METRICS[key]}")
        )
        value, interval = line.split("|")[2:4]
        low, high = (float(v) for v in interval.split(" to "))
        assert float(value) == pytest.approx(row[key], rel=1e-3) and low <= float(value) <= high
    for fact in (run.id, "`mlp_out` of layer 0", "2,048 tokens of some/dataset", "| lam | 0.1 |"):
        assert fact in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    monkeypatch.setattr(files_module, "pull", lambda name: folder)
    x = torch.randn(7, D)
    scope = {"x": x}
    exec(code, scope)
    sae = gsae.load(run.id)
    torch.testing.assert_close(scope["x_hat"], sae(x * sae.about["scale"]) / sae.about["scale"])


def test_a_push_that_cannot_be_is_told_in_words(trained, served, tmp_path, monkeypatch):
    run, _ = trained
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(files_module.HubError, match="no model owner/name|refused"):
        share.push(run.id, "owner/name")
    with pytest.raises(files_module.HubError, match="run 0123456789ab has no evidence.*`gsae run`"):
        share.push("0123456789ab", "owner/name")
    files_module.weights(run.id).unlink()
    with pytest.raises(FileNotFoundError, match="Weights are not in git"):
        share.push(run.id, "owner/name")


def test_load_names_what_it_did_not_find(offline, tmp_path, repositories):
    with pytest.raises(FileNotFoundError, match="no SAE at '0123456789ab'"):
        gsae.load("0123456789ab")
    with pytest.raises(FileNotFoundError, match=r"no SAE at 'runs/mine.safetensors'"):
        gsae.load("runs/mine.safetensors")
    with pytest.raises(FileNotFoundError, match="gsae.saes.importing.import_sae"):
        gsae.load(tmp_path)
    cached("someone/words", repositories["someone/words"])
    with pytest.raises(
        files_module.HubError, match="holds no sae.safetensors: it was not pushed by gsae"
    ):
        gsae.load("someone/words")
