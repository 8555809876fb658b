"""Dashboards: one pass over text against a slow reading of it, what a direction does to logits, and
safe HTML.
"""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

import gsae
from gsae.interpretability import dashboards
from gsae.interpretability.examples import scan
from gsae.interpretability.latent_files import DataError, load, quantiles, save, slim, validate
from gsae.interpretability.latents import collect
from gsae.lm.models import LM
from gsae.lm.names import SITES

N, T, K, V, BEFORE, AFTER = 13, 11, 5, 37, 3, 2
D, HEADS, D_HEAD, D_MLP = 24, 3, 8, 40
EVIL = [
    "<script>alert(1)</script>",
    "</script><script>window.hacked=1</script>",
    "<!--",
    "]]>",
    "<img src=x onerror=hacked=1>",
    "\"'><b onclick=hacked=1>",
    "&lt;",
    "\x00\x07\x1b[31m",
    "\u202egnp.exe\u202c",
    "\u200f\u05d0\u05d1",
    "\u2028",
    "\ud800",
    "@@DATA@@",
    "{{css}}",
    "\t\r\n",
    " \u00e9\u4e2d\U0001f600",
]


class Words:
    """A tokenizer of numbered words; the first ids are hostile text."""

    def decode(self, ids):
        return EVIL[ids[0]] if ids[0] < len(EVIL) else f" w{ids[0]}"

    def convert_ids_to_tokens(self, i):
        return self.decode([i])


def activations(part: torch.Tensor) -> torch.Tensor:
    """Sparse activations that are a fixed function of a block's tokens; the last latent is never
    on.
    """
    rows = []
    for block in part:
        f = torch.rand(
            T - 1,
            K,
            generator=torch.Generator().manual_seed(int((block * torch.arange(1, T + 1)).sum())),
        )
        rows.append(
            torch.relu(f - torch.tensor([0.3, 0.5, 0.7, 0.9, 2.0]))
            * torch.tensor([1.0, 7, 0.1, 100, 1])
        )
    return torch.stack(rows)


@pytest.fixture(scope="module")
def blocks():
    return torch.randint(V, (N, T), generator=torch.Generator().manual_seed(0))


def scanned(blocks, **options):
    return scan(
        blocks, activations, Words(), **{"before": BEFORE, "after": AFTER, "sample": 500, **options}
    )


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_one_pass_is_what_reading_token_by_token_gives(blocks, batch):
    latents, windows = scanned(blocks, batch=batch, top=4, background=29)
    f, text = activations(blocks), [[Words().decode([int(i)]) for i in row] for row in blocks]
    assert len(windows) == len({(w["block"], w["pos"]) for w in windows}) == 29
    for k, latent in enumerate(latents):
        on, peaks, best = 0, set(), []
        for b in range(N):
            row = [0.0, *f[b, :, k].tolist()]  # position 0 counts nowhere
            on += sum(a > 0 for a in row)
            near = [row[max(0, t - BEFORE) : t + AFTER + 1] for t in range(T)]
            peaks |= {(b, t) for t in range(1, T) if row[t] > 0 and row[t] == max(near[t])}
            best += [(max(row), b, row.index(max(row)))] if max(row) > 0 else []
            for i, w in enumerate(windows):
                if w["block"] == b:
                    assert (i in latent["background"]["at"]) == (row[w["pos"]] > 0)
                    others = sum(a > 0 for a in near[w["pos"]]) - (row[w["pos"]] > 0)
                    assert (i in latent["background"]["near"]) == (others > 0)
        assert latent["density"] == pytest.approx(on / (N * (T - 1)), rel=1e-5)
        assert [(e["block"], e["pos"]) for e in latent["top"]] == [
            (b, t) for _, b, t in sorted(best, reverse=True)[:4]
        ]
        assert {(e["block"], e["pos"]) for e in latent["sample"]} == peaks
        assert latent["max"] == pytest.approx(max((a for a, *_ in best), default=0), rel=6e-3)
        for e in [*latent["top"], *latent["sample"]]:
            lo = max(1, e["pos"] - BEFORE)
            assert (
                e["tokens"] == text[e["block"]][lo : e["pos"] + AFTER + 1]
                and e["at"] == e["pos"] - lo
            )
            assert e["acts"] == pytest.approx(
                f[e["block"], lo - 1 : e["pos"] + AFTER, k].tolist(), rel=6e-3
            )
        counts, width = latent["histogram"]["counts"], latent["histogram"]["width"]
        values = f[..., k][f[..., k] > 0].double().numpy()
        if on:
            cut = [*(i * width for i in range(len(counts))), np.inf]
            assert (
                np.abs(np.array(counts) - np.histogram(values, cut)[0]).sum() <= 2
            )  # one value may sit on an edge
            assert (
                sum(counts) == on
                and len(values)
                and width * (len(counts) - 1) <= values.max() <= width * len(counts)
            )
        else:
            assert counts == [] and latent["top"] == latent["sample"] == [] and latent["max"] == 0


def test_samples_are_uniform_over_peaks(blocks):
    latents, _ = scanned(blocks)
    peaks = {(e["block"], e["pos"]) for e in latents[1]["sample"]}
    drawn, size, seeds = Counter(), 7, 120
    for seed in range(seeds):
        latents, _ = scanned(blocks, sample=size, seed=seed, batch=4)
        drawn.update((e["block"], e["pos"]) for e in latents[1]["sample"])
    expected = seeds * size / len(peaks)
    assert len(peaks) > 2 * size and set(drawn) == peaks
    assert max(abs(n - expected) for n in drawn.values()) < 5 * expected**0.5


def test_quantiles_rise_with_the_activation(blocks):
    latents, _ = scanned(blocks)
    acts = [[e["acts"][e["at"]] for e in rows] for _, _, rows in quantiles(latents[0], each=3)]
    assert [len(rows) for rows in acts] == [3, 3, 3, 3]
    assert (
        all(min(a) >= max(b) for a, b in zip(acts, acts[1:], strict=False))
        and acts[0][0] > acts[-1][-1]
    )
    assert latents[0]["sample"][0]["q"] == 1 and latents[0]["sample"][-1]["q"] == 0


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_activations_below_0_are_refused(blocks, wrong):
    with pytest.raises(ValueError, match="finite and at least 0"):
        scan(blocks, lambda part: torch.full((len(part), T - 1, 2), wrong), Words())


def make(norm="LN"):
    config = dict(
        d_model=D,
        d_head=D_HEAD,
        n_heads=HEADS,
        n_layers=2,
        n_ctx=16,
        d_vocab=V,
        d_mlp=D_MLP,
        seed=0,
    )
    config |= dict(act_fn="gelu", normalization_type=norm, initializer_range=0.3)
    lm = LM(TransformerBridge.boot_native(TransformerBridgeConfig(**config)), "tiny")
    lm.tokenizer = Words()
    with torch.no_grad():
        lm.bridge.ln_final.weight.copy_(torch.rand(D) + 0.5)
    return lm


@pytest.fixture(scope="module")
def lm():
    return make()


def test_direct_logits_of_the_residual_stream_are_the_final_norm_and_unembedding(lm):
    d = torch.randn(7, D)
    centred = d - d.mean(1, keepdim=True)
    by_hand = (
        centred
        / centred.square().mean(1, keepdim=True).sqrt()
        * lm.bridge.ln_final.weight
        @ lm.bridge.unembed.W_U
    )
    by_hand = by_hand - by_hand.mean(1, keepdim=True)
    for site in ("resid_post", "mlp_out"):
        torch.testing.assert_close(lm.direct_logits(d, site, 1), by_hand, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        lm.direct_logits(d, "mlp_out", 0), lm.direct_logits(5 * d, "mlp_out", 0)
    )


@pytest.mark.parametrize(
    "site, out", [("attn_z", "hook_attn_out"), ("mlp_neurons", "hook_mlp_out")]
)
def test_a_direction_inside_a_block_acts_through_the_blocks_own_output(lm, blocks, site, out):
    """The change of the block's output when the direction is added at the site, measured by running
    the model.
    """
    d, seen = torch.randn(lm.d(site)), []
    inner = {"attn_z": "attn.hook_z", "mlp_neurons": "mlp.hook_post"}[site]
    for add in (0, 1):
        hooks = [(f"blocks.1.{inner}", lambda v, hook, add=add: v + add * d.view(v.shape[2:]))]
        hooks.append((f"blocks.1.{out}", lambda v, hook: seen.append(v.detach().clone())))
        with lm.bridge.hooks(fwd_hooks=hooks):
            lm.bridge(blocks[:2])
    written = (seen[1] - seen[0])[0, 3]
    through = lm.direct_logits(written[None], "resid_post", 1)
    torch.testing.assert_close(lm.direct_logits(d[None], site, 1), through, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def data(lm, blocks):
    return collected(lm, blocks, "resid_post")


def collected(lm, blocks, site, **options):
    sae = gsae.GatedSAE(lm.d(site), 29, seed=3)
    return collect(
        sae, lm, blocks, site, 1, [4, 28, 0, 11], scale=0.2, run="r1", sample=30, **options
    )


def test_collected_latents_are_those_asked_for(lm, blocks, data):
    x = lm.activations(blocks, [("resid_post", 1)])[("resid_post", 1)][:, 1:]
    sae = gsae.GatedSAE(D, 29, seed=3)
    f = sae.encode(x * 0.2).detach()
    cosines = (sae.W_dec @ sae.W_dec.T).detach()
    for i, latent in zip([4, 28, 0, 11], data["latents"], strict=True):
        assert latent["latent"] == i and latent["density"] == pytest.approx(
            float((f[..., i] > 0).float().mean()), rel=1e-4
        )
        assert latent["max"] == pytest.approx(float(f[..., i].max()), rel=6e-3)
        near = [j for j in cosines[i].argsort(descending=True).tolist() if j != i][:5]
        assert [j for j, _ in latent["similar"]] == near and "neurons" not in latent
        logits = lm.direct_logits(sae.W_dec[i : i + 1].detach(), "resid_post", 1)[0]
        assert latent["logits"]["raised"][0] == [
            Words().decode([int(logits.argmax())]),
            round(float(logits.max()), 2),
        ]
        assert latent["logits"]["lowered"][0][1] == round(float(logits.min()), 2)
    assert data["provenance"] == {
        "run": "r1", "lm": "tiny", "site": "resid_post", "layer": 1, "n": D, "M": 29, "scale": 0.2,
        "tokens": N * (T - 1), "context": T, "corpus": data["provenance"]["corpus"],
        "l0": pytest.approx(float((f > 0).sum(-1).float().mean()), abs=0.006),
    }  # fmt: skip
    other = collected(lm, blocks.flip(0), "resid_post")
    assert other["provenance"]["corpus"] != data["provenance"]["corpus"]


def test_neurons_of_a_direction_are_its_shares_of_the_squared_norm(lm, blocks):
    sae = gsae.BaselineSAE(D_MLP, 29, seed=3)
    sae.W_dec.data *= 3
    latent = collect(sae, lm, blocks, "mlp_neurons", 0, [6], scale=1.0, facts=2 * D_MLP)["latents"][
        0
    ]
    assert len(latent["neurons"]) == D_MLP and sum(
        v for _, v in latent["neurons"]
    ) == pytest.approx(1, abs=0.02)
    assert latent["neurons"][0][0] == int(sae.W_dec[6].abs().argmax())


@pytest.mark.parametrize("site", ["mlp_out", "resid_post"])
def test_a_direction_is_aligned_with_the_neuron_that_writes_it(lm, blocks, site):
    out, W = lm.bridge.blocks[1].mlp.W_out.detach(), torch.eye(D)
    W[2], W[3] = -3 * out[17], out[5] + out[31]
    sae = SimpleNamespace(encode=lambda x: torch.relu(x), W_dec=W)
    one, two = (
        v["aligned"] for v in collect(sae, lm, blocks, site, 1, [2, 3], scale=1.0)["latents"]
    )
    assert one[0] == [17, 1.0] and one[1][1] < 0.95 and {i for i, _ in two[:2]} == {5, 31}
    assert "17 (1.00)" in dashboards.facts({"aligned": one})


@pytest.mark.parametrize("site", SITES)
def test_any_object_with_an_encoder_and_a_decoder_will_do(lm, blocks, site):
    W = torch.eye(lm.d(site))
    sae = SimpleNamespace(encode=lambda x: torch.relu(x @ W), W_dec=W)
    found = collect(sae, lm, blocks, site, 1, [2], scale=2.0)
    x = lm.activations(blocks, [(site, 1)])[(site, 1)][:, 1:, 2]
    assert found["latents"][0]["max"] == pytest.approx(2 * float(x.max()), rel=6e-3)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scale=None), "pass scale"),
        (dict(latents=[3, 29]), "from 0 to 28"),
        (dict(latents=[3, 3]), "different numbers"),
        (dict(latents=[]), "at least one"),
        (dict(site="mlp_neurons"), "width 40"),
        (dict(site="mlp"), "unknown site"),
    ],
)
def test_what_does_not_fit_is_refused(lm, blocks, change, message):
    call = dict(
        sae=gsae.GatedSAE(D, 29),
        lm=lm,
        blocks=blocks,
        site="mlp_out",
        layer=0,
        latents=[1],
        scale=1.0,
    )
    with pytest.raises(ValueError, match=message):
        collect(**call | change)


def test_saved_data_comes_back_and_a_bad_write_leaves_the_old_file(data, tmp_path):
    path = save(data, tmp_path / "a" / "x.json")
    assert load(path) == data
    with pytest.raises(DataError, match="no latents"):
        save({**data, "latents": []}, path)
    assert load(path) == data and [p.name for p in path.parent.iterdir()] == ["x.json"]


def damage(data):
    return json.loads(json.dumps(data))


DAMAGES = {
    "schema": (lambda d: d.update(schema=0), "schema"),
    "provenance": (lambda d: d["provenance"].pop("corpus"), "corpus"),
    "density": (lambda d: d["latents"][2].update(density=0.9), "latent 0: density"),
    "token": (lambda d: d["latents"][1]["sample"][0]["tokens"].pop(), "latent 28: the example"),
    "act": (lambda d: d["latents"][1]["top"][0]["acts"].__setitem__(0, 1e9), "latent 28"),
    "at": (lambda d: d["latents"][0]["top"][0].update(at=99), "latent 4: IndexError"),
    "logits": (lambda d: d["latents"][3].pop("logits"), "latent 11: KeyError 'logits'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_named_with_their_entry(data, tmp_path, name):
    broken = damage(data)
    DAMAGES[name][0](broken)
    (tmp_path / "x.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "x.json"))) as error:
        load(tmp_path / "x.json")
    assert DAMAGES[name][1] in str(error.value)


def test_slim_data_shows_the_same_dashboard_and_is_small(data):
    small = slim(data, top=10)
    assert validate(small) == [] and small["background"] == []
    for a, b in zip(data["latents"], small["latents"], strict=True):
        assert dashboards.fragment(a) == dashboards.fragment(b)
    example = {
        "block": 1234,
        "pos": 99,
        "at": 16,
        "tokens": [" token"] * 25,
        "acts": [0] * 15 + [0.123] * 10,
    }
    full = {
        **data["latents"][0],
        "top": [example] * 10,
        "sample": [{**example, "q": i / 99} for i in range(100)],
    }
    size = len(json.dumps(slim({**data, "latents": [full]})["latents"], separators=(",", ":")))
    assert 120 * size < 1.1e6


class Read(HTMLParser):
    """Elements, attributes and text as a browser would see them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attrs, self.text = Counter(), set(), ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attrs |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def hostile(**changes):
    example = {
        "tokens": EVIL,
        "acts": [0] * 3 + [5] + [2] * (len(EVIL) - 4),
        "at": 3,
        "block": 0,
        "pos": 3,
    }
    logits = {"raised": [[t, 1.0] for t in EVIL], "lowered": [[t, -1.0] for t in EVIL]}
    return {
        "latent": 7,
        "density": 0.0123,
        "max": 5,
        "histogram": {"width": 0.5, "counts": [4, 0, 1]},
        "top": [example],
        "sample": [{**example, "q": 1.0}],
        "logits": logits,
        "similar": [[9, 0.5]],
        "neurons": [[3, 0.25]],
        **changes,
    }


@pytest.mark.parametrize("blind", [False, True])
def test_corpus_text_stays_text(blind):
    html = dashboards.fragment(hostile(), blind, style=False)
    seen = Read(html)
    known = {
        "div",
        "h3",
        "h4",
        "p",
        "ol",
        "li",
        "span",
        "mark",
        "bdi",
        "table",
        "caption",
        "tbody",
        "tr",
        "td",
        "code",
    }
    assert (
        set(seen.tags) <= known | {"figure", "figcaption", "svg", "rect"} and seen.tags["mark"] == 2
    )
    assert not any(a.startswith("on") or a in ("src", "href") for a in seen.attrs)
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", html
    )
    for text in (
        "<script>alert(1)</script>",
        "⟨U+202E⟩gnp.exe⟨U+202C⟩",
        "⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩[31m",
        "&lt;",
        "⟨U+D800⟩",
    ):
        assert text in seen.text


def test_a_blind_fragment_tells_nothing_of_the_sae():
    """Two latents that differ in all that an architecture, site or layer can change look the
    same.
    """
    one = hostile()
    scaled = [{**e, "acts": [3 * a for a in e["acts"]]} for e in one["sample"]]
    changes = {
        "latent": 12345, "histogram": {"width": 1.5, "counts": [4, 0, 1]}, "similar": [[3456, 0.1]],
        "neurons": [[1, 0.9]], "aligned": [[7, 0.4]], "max": 15, "sample": scaled,
        "top": [{k: v for k, v in e.items() if k != "q"} for e in scaled],
    }  # fmt: skip
    assert dashboards.fragment(one, True) == dashboards.fragment(hostile(**changes), True)
    # A gate lifts every activation by the same amount, and leaves a gap above 0.
    lifted = [{**e, "acts": [a and a + 4 for a in e["acts"]]} for e in one["sample"]]
    gap = {"max": 9, "histogram": {"width": 0.5, "counts": [0] * 8 + [4, 0, 1]}, "sample": lifted}
    gap["top"] = [{k: v for k, v in e.items() if k != "q"} for e in lifted]
    assert dashboards.fragment(one, True) == dashboards.fragment(hostile(**gap), True)
    assert dashboards.fragment(one) != dashboards.fragment(hostile(**gap))
    for name in ("latent", "similar", "neurons", "aligned"):
        changed = hostile(**{name: changes[name]})
        assert dashboards.fragment(one) != dashboards.fragment(changed)
        assert dashboards.fragment(one, True) == dashboards.fragment(changed, True)


def test_densities_are_plain_numbers():
    for density, blind, shown in (
        (0.31, True, "30 %"),
        (0.31, False, "31 %"),
        (0.00123, True, "0.1 %"),
    ):
        assert f"On at {shown} of tokens" in dashboards.fragment(hostile(density=density), blind)


def test_a_latent_that_is_never_on_says_so():
    dead = hostile(max=0, density=0, top=[], sample=[], histogram={"width": 0, "counts": []})
    assert "Never on" in dashboards.fragment(dead) and "<ol>" not in dashboards.fragment(dead)


@pytest.fixture(scope="module")
def file(data, tmp_path_factory):
    held = [*data["latents"], hostile()]
    return dashboards.write_page(
        {**data, "latents": held}, tmp_path_factory.mktemp("page") / "x.html", "</title><b>"
    )


def test_a_page_is_self_contained_and_holds_its_data_safely(file):
    html = file.read_text("utf-8")
    assert html.count("<script") == html.count("</script") == 2 and "@@CSS" not in html
    assert not re.search(
        r"(?i)<link[^>]+href=\"(?!data:)|\ssrc=|url\(|@import", html.split('id="data"')[0]
    )
    inside = re.search(r'id="data">(.*?)</script>', html, re.S)[1]
    assert not set(inside) & set("<>&")  # nothing in it can end the element, whatever the text
    held = json.loads(inside)
    assert [row["latent"] for row in held] == [4, 28, 0, 11, 7]
    assert held[-1]["html"] == dashboards.fragment(hostile(), style=False)
    assert "&lt;/title&gt;" in html


def test_a_page_in_a_browser(file, browser):
    for width, scheme in ((1280, "light"), (390, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page, problems, asked = context.new_page(), [], []
        page.on("console", lambda m, to=problems: to.append(m.text))
        page.on("pageerror", lambda e, to=problems: to.append(str(e)))
        page.on("request", lambda r, to=asked: to.append(r.url))
        page.goto(file.as_uri() + "#11")
        place = lambda page=page: page.inner_text("#place")
        assert place() == "Latent 11, 4 of 5"
        page.keyboard.press("ArrowRight")
        assert place() == "Latent 7, 5 of 5" and page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        light = (
            page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert light == (scheme == "light")
        page.keyboard.press("Home")
        assert place() == "Latent 4, 1 of 5"
        page.keyboard.press("/")
        page.keyboard.type("28\n")
        assert place() == "Latent 28, 2 of 5" and "Latent 28" in page.inner_text("#shown")
        page.fill("#jump", "999")
        page.press("#jump", "Enter")
        assert place() == "No latent 999 here"
        page.select_option("#order", "latent")
        assert place() == "Latent 28, 5 of 5"
        assert problems == [] and asked == [file.as_uri()]
