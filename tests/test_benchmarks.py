"""The benchmark: its count of useful work, its arithmetic on known times, and one run at toy size
from end to end.
"""

import json
import sys

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import __main__ as program
from benchmarks import cases, matmul, peers, profile, report
from benchmarks import tables as benchfig
from benchmarks.cases import Case
from gsae import saes
from gsae.training import closed_form

B, N, M = 7, 5, 11
SHAPE = N, M, B


def ours(arch="gated", K=1, width=M, setting="bf16"):
    return Case("gsae", setting, arch, K, N, width, B)


@pytest.mark.parametrize("arch, by_hand", [("gated", 14 * 5 * 11), ("baseline", 10 * 5 * 11)])
def test_useful_work_is_the_hand_count_the_counted_products_and_the_step(arch, by_hand):
    assert cases.flops(arch, N, M) == by_hand
    counted = 0
    for name, call in matmul.products(*SHAPE, torch.float32).items():
        with FlopCounterMode(display=False) as counter:
            call()
        counted += cases.PRODUCTS[name][arch] * counter.get_total_flops()
    assert counted == B * by_hand
    # What the step really multiplies: the same, and one vector's product a batch for the
    # encoder-side bias.
    sae, x = saes.ARCHITECTURES[arch](N, M), torch.randn(B, N)
    w = {name: p.detach() for name, p in sae.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        closed_form.closed_form(arch)(w, x, torch.tensor(0.1), torch.float32)
    assert B * by_hand <= counter.get_total_flops() <= B * by_hand + 2 * N * M


def test_ratios_are_taken_round_by_round():
    """A machine that slows down to a third in the second round changes no ratio."""
    drift = [1.0, 3.0, 2.0]
    slow, odd = (
        Case("sae-lens", "autocast", "gated", 1, *SHAPE),
        Case("dictionary-learning", "outside: x", "gated", 1, *SHAPE),
    )
    times = {
        ours(): 0.5,
        ours("baseline"): 0.4,
        ours("baseline", width=16): 0.6,
        slow: 2.0,
        odd: 1.0,
        ours(K=4): 1.5,
    }
    found = {case: {"rounds": [s * d for d in drift]} for case, s in times.items()}
    machine = {(SHAPE, "bf16"): [dict.fromkeys(cases.PRODUCTS, 0.05 * d) for d in drift]}
    rows = {r["name"]: r for r in report.training_rows(found, machine)}
    own = rows[ours().name]
    assert own["samples_per_s"] == pytest.approx([B / 1.0, B / 1.5, B / 0.5], rel=1e-4)
    assert own["tflops"][2] == pytest.approx(B / 0.5 * 14 * N * M / 1e12, rel=1e-4)
    assert own["share_of_bf16"] == pytest.approx(
        [0.7] * 3, rel=1e-4
    )  # seven products of 0.05 s in half a second
    assert rows[ours("baseline").name]["share_of_bf16"] == pytest.approx([0.625] * 3, rel=1e-4)
    assert own["fastest_documented"] == slow.name and own[
        "times_fastest_documented"
    ] == pytest.approx([4.0] * 3)
    assert own["fastest_made"] == odd.name and own["times_fastest_made"] == pytest.approx([2.0] * 3)
    assert rows[slow.name]["times_fastest_made"] == pytest.approx([0.5] * 3)
    stack = rows[ours(K=4).name]  # four SAEs in three times the time; no peer trained four
    assert stack["samples_per_s"][2] == pytest.approx(4 * B / 1.5, rel=1e-4)
    assert stack["times_fastest_documented"][0] == pytest.approx(4 * 2 / 1.5, rel=1e-4)
    costs = {c["wider"]: c for c in report.cost_rows(found)}
    assert costs[1.0]["measured"] == pytest.approx([1.25] * 3) and costs[1.0]["count"] == 1.4
    assert costs[1.5]["measured"] == pytest.approx([5 / 6] * 3, rel=1e-4)


class Clocked:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def round(self):
        self.log.append(self.name)
        if self.name == "broken":
            raise peers.PeerError("it cannot")
        return 1.0


def test_rounds_come_in_turn_there_and_back_and_a_failure_stops_nothing_else():
    log, failed = [], {}
    found = program.measure([Clocked(n, log) for n in ("a", "broken", "c")], 3, failed, bar=False)
    assert log == ["a", "broken", "c", "c", "a", "a", "c"]
    assert found == {"a": [1.0] * 3, "broken": [], "c": [1.0] * 3} and failed == {
        "broken": "it cannot"
    }


@pytest.fixture(scope="module")
def tiny():
    """A language model of three random layers, through gsae and in transformers."""
    from transformer_lens.model_bridge import TransformerBridge

    from gsae.lm.models import LM

    sizes = dict(
        vocab_size=37,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
    )
    config = LlamaConfig(**sizes, num_key_value_heads=1, max_position_embeddings=16)
    plain, copied = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config)
    copied.load_state_dict(plain.state_dict())
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(37)}, unk_token="w0"))
    words = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", eos_token="w1", pad_token="w1"
    )
    bridge = TransformerBridge.boot_transformers(
        "tiny", hf_model=copied, tokenizer=words, device="cpu"
    )
    return LM(bridge, "tiny", context=11), plain


@pytest.fixture(scope="module")
def record(tiny):
    settings = dict(rounds=2, seconds=0.002, settle=1, rows=4 * B, bar=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSAE_COMPILE", "0")  # a compilation takes longer than the rest
        todo = [ours(a, K) for a in ("gated", "baseline") for K in (1, 3)] + [
            ours("baseline", width=16),
            ours(setting="fp32"),
            *(ours(a, width=64, setting="sparse, L0 32") for a in ("gated", "baseline")),
        ]
        alien = Case("sae-lens", "no such setting", "gated", 1, *SHAPE)
        python = dict(
            python=sys.executable, language_model=lambda device: (tiny[0], lambda: tiny[1])
        )
        return program.bench([*todo, alien], [("mlp_out", 1)], **settings, **python)


def test_the_record_has_every_field_and_survives_json(record, tmp_path):
    program.write(record, tmp_path / "bench" / "a.json")
    assert (
        benchfig.newest(tmp_path / "bench") == record and benchfig.newest(tmp_path / "none") is None
    )
    assert {"date", "commit", "dirty", "versions", "peers", "settings", "rows"} <= set(record)
    assert {"cpu", "cores", "threads", "flags", "device"} <= set(record["machine"]) and record[
        "machine"
    ]["cores"] >= 1
    assert record["versions"]["torch"] == torch.__version__
    training = {r["name"]: r for r in record["rows"] if r["kind"] == "training"}
    for row in training.values():
        if row["library"] == "gsae":
            assert 0 < row["samples_per_s"][1] <= row["samples_per_s"][0] <= row["samples_per_s"][2]
            assert (
                row["share_of_bf16"][0] > 0
                and len(row["rounds"]) == 2
                and 0 < row["l0"] <= row["M"]
            )
            assert "sparse" not in row["setting"] or 20 < row["l0"] < 44
            assert row["tflops"][0] == pytest.approx(
                row["samples_per_s"][0] * row["flops_a_sample"] / 1e12, rel=1e-3
            )
    (failed,) = [r for r in training.values() if r["library"] != "gsae"]
    assert "no such setting" in failed["error"] and "samples_per_s" not in failed
    assert {(r["M"], r["dtype"]) for r in record["rows"] if r["kind"] == "machine"} == {
        (width, dtype) for width in (M, 16, 64) for dtype in ("bf16", "fp32")
    }
    assert [r["wider"] for r in record["rows"] if r["kind"] == "cost" and r["K"] == 1] == [1.0, 1.5]
    assert json.loads(json.dumps(record)) == record


def test_tables_and_figure_show_the_record(record):
    tables = benchfig.tables(record)
    (beside,) = [t for title, t in tables.items() if "beside" in title]
    assert {"samples/s", "TFLOP/s", "of bf16 rate"} <= set(beside) and beside[
        "samples/s"
    ].str.contains("failed").sum() == 1
    lines = [benchfig.markdown(t).splitlines() for t in tables.values()]
    assert all(len({line.count(" | ") for line in table}) == 1 for table in lines)
    text = report.terminal(record)
    assert "gated" in text and "Harvest" in text and record["date"] in text
    assert "for a stack of 3" in benchfig.alt(record)
    axes = benchfig.figure(record).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert {"gsae, gated", "gsae, baseline", "bf16 products alone, gated"} <= set(labels)
    own = next(r for r in benchfig.at_reference(record) if r["arch"] == "gated")
    roof = next(
        line for line in axes.lines if line.get_label() == "bf16 products alone, gated"
    ).get_ydata()[0]
    machine = next(
        r for r in record["rows"] if r["kind"] == "machine" and r["M"] == M and r["dtype"] == "bf16"
    )
    assert roof == pytest.approx(machine["tflops"]["gated"][0] * 1e12 / own["flops_a_sample"])


def test_an_aim_is_reached_by_the_median_and_against_the_faster_default():
    case = {"kind": "training", "arch": "gated", "K": 1, "n": 576, "M": 2304, "batch": 2048}
    own = case | {
        "library": "gsae",
        "setting": "bf16",
        "rounds": [30.0, 20.0, 25.0],
        "share_of_bf16": [0.79, 0.7, 0.9],
    }
    peers = [
        case | {"library": name, "setting": "default", "rounds": rounds}
        for name, rounds in (("slow", [1.0, 1.0, 1.0]), ("fast", [10.0, 10.0, 10.0]))
    ]
    found = {
        t["quantity"]: t for t in benchfig.targets({"rows": [own, *peers, case | {"error": "no"}]})
    }
    assert not found["share_of_bf16"]["met"] and found["times_default"]["measured"] == [
        2.5,
        2.0,
        3.0,
    ]
    assert found["times_default"]["met"] and set(found) == {"share_of_bf16", "times_default"}


def test_the_bare_forward_ends_after_the_harvested_layer(tiny, record):
    lm, plain = tiny
    rows = {r["name"]: r for r in record["rows"] if r["kind"] == "harvest"}
    assert rows["tiny [harvest] mlp_out 1"]["share_of_bare"][0] > 0
    assert len(plain.base_model.layers) == 2  # layers 0 and 1 of three
    tokens = torch.arange(11)[None]
    read = lm.activations(tokens, [("resid_post", 1)])["resid_post", 1]
    layers = []
    plain.base_model.layers[-1].register_forward_hook(lambda *a: layers.append(a[2]))
    with torch.no_grad():
        plain.base_model(input_ids=tokens, use_cache=False)
    assert torch.allclose(
        layers[0][0] if isinstance(layers[0], tuple) else layers[0], read, atol=1e-5
    )


def test_only_selects_by_name_and_a_part_is_not_published(capsys, record):
    assert program.main(["--list", "--only", "gsae.*bf16.*gated x1 n576 M16384"]) == 0
    assert capsys.readouterr().out.splitlines() == ["gsae [bf16] gated x1 n576 M16384 b2048"]
    assert program.main(["--only", "no such case"]) == 1 and "--list" in capsys.readouterr().err
    assert program.default_path(record, whole=True).parent == program.FOLDER
    assert "_build" in program.default_path(record, whole=False).parts


def test_a_step_is_taken_apart(monkeypatch):
    monkeypatch.setenv("GSAE_COMPILE", "0")
    whole = [profile.shares(ours("gated", width=w, setting=s), torch.randn(4 * B, N)) for w, s in
             ((1024, "bf16"), (1024, "sparse, L0 32"))]  # fmt: skip
    for row in whole:
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3) and list(
            row["shares"]
        ) == [
            *profile.PARTS,
            "rest",
        ]
    dense, sparse = (row["shares"] for row in whole)
    assert (
        min(
            dense["matrix products"], sparse["matrix products"], sparse["gathering"], sparse["Adam"]
        )
        > 0
    )
    parts = map(
        profile.part,
        (
            "aten::mm",
            "graph_5_cpp_fused_add_div_sqrt_0",
            "aten::_embedding_bag_forward_only",
            "graph_0_cpp_fused_add_exp_0",
            "Pregraph bytecode",
        ),
    )
    assert list(parts) == ["matrix products", "Adam", "gathering", "element-wise", "rest"]
    chosen = program.profiled(program.our_cases(False))
    assert {(c.M, c.setting) for c in chosen} == {
        (m, s) for m in (2304, 16_384) for s in ("bf16", "sparse, L0 64")
    }


def test_aims_are_held_to_dense_and_to_sparse_products():
    row = {
        "kind": "training",
        "library": "gsae",
        "arch": "gated",
        "K": 1,
        "n": 576,
        "M": 2304,
        "batch": 2048,
    }
    shares = {"bf16": 0.7, "fp32": 0.3, "sparse, L0 64": 2.0, "sparse, L0 32": 3.0}
    rows = [
        row | {"setting": s, "share_of_bf16": [v] * 3, "rounds": [1.0]} for s, v in shares.items()
    ]
    found = [(t["what"], t["measured"][0], t["met"]) for t in benchfig.targets({"rows": rows})]
    assert found == [("gated, one SAE", 0.7, False), ("gated, one SAE, 64 latents on", 2.0, True)]
