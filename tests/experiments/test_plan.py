"""Plans: bytes against tensors on the meta device, operations against counted ones, sharding,
refusal.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import gsae.saes.base
from gsae import cli
from gsae.evidence import run_files
from gsae.evidence.run import Run, wider
from gsae.experiments import (
    cost,
    estimate,
    gpu_parts,
    gpu_sweep,
    gpus,
    limits,
    paper_scale,
    plan,
    settings,
    smollm2_sites,
    sweeps,
)
from gsae.lm import names
from gsae.saes import GatedSAE
from gsae.training.closed_form import closed_form
from gsae.training.schedule import Plan
from gsae.training.stack import Stack

# The models' public shapes, as their configs on the hub give them.
CONFIGS = {
    "pythia-2.8b": transformers.GPTNeoXConfig(
        hidden_size=2560,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=10_240,
        vocab_size=50_304,
        max_position_embeddings=2048,
        rotary_pct=0.25,
        tie_word_embeddings=False,
        attn_implementation="eager",
    ),
    "gemma-7b": transformers.GemmaConfig(
        hidden_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=256,
        intermediate_size=24_576,
        vocab_size=256_000,
        attn_implementation="eager",
    ),
    "smollm2": transformers.LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49_152,
        tie_word_embeddings=True,
        attn_implementation="eager",
    ),
}


def on_meta(name, **changes):
    config = type(CONFIGS[name])(**{**CONFIGS[name].to_dict(), **changes})
    config._attn_implementation = "eager"
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16
        ).requires_grad_(False)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_of_the_language_model(name):
    held = sum(p.numel() * p.element_size() for p in on_meta(name).parameters())
    assert cost.lm_bytes(name) == pytest.approx(held, rel=2e-3)


class Peak(TorchDispatchMode):
    """Most bytes alive at once of tensors made inside."""

    def __init__(self):
        super().__init__()
        self.refs, self.bytes, self.paused = {}, 0, False

    def see(self, tensors):
        for t in tensors:
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.refs.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.refs = {k: v for k, v in self.refs.items() if not v[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.refs.values()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if not self.paused:
            self.see(tree_leaves(out))
        return out

    def fused(self, function):
        """A function whose inside keeps nothing, as a compiled one does."""

        def call(*args):
            self.paused = True
            out = function(*args)
            self.paused = False
            self.see(tree_leaves(out))
            return out

        return call


@pytest.fixture
def no_initial_rows(monkeypatch):
    monkeypatch.setattr(
        gsae.saes.base, "unit_rows", lambda n, M, seed: torch.empty(M, n, device="meta")
    )


def stack_plan(run, **changes):
    switches = tuple(sorted(run.switches.items()))
    options = dict(switches=switches, resample=run.resample, device="meta") | changes
    return Plan(
        run.arch, limits.width(run), run.M, (0.1, 0.2, 0.3), run.steps, run.batch, run.lr, **options
    )


PAPER = [r for r in paper_scale.gated_sites() if r.layer in (0, 20)]
ARMS = [Run(), wider(Run()), Run(tie="none"), Run(tie="shared")]


@pytest.mark.parametrize(
    "run", [*PAPER, *map(wider, PAPER), *ARMS], ids=lambda r: f"{r.lm}-{r.site}-{r.arch}-{r.tie}"
)
def test_what_a_stack_holds(run, no_initial_rows):
    with torch.device("meta"):
        stack = Stack(stack_plan(run))
    tensors = [*stack.w.values(), *stack.v.values(), stack.age, stack.silent]
    assert 3 * cost.held_bytes(run) == sum(t.numel() * t.element_size() for t in tensors)
    assert cost.parameters(run) == sum(p.numel() for p in stack.plan.sae().parameters())


@pytest.mark.parametrize(
    "run", [*PAPER, *map(wider, PAPER)], ids=lambda r: f"{r.lm}-{r.site}-{r.arch}"
)
def test_what_a_step_adds(run, no_initial_rows):
    with torch.device("meta"):
        w = {k: v.detach() for k, v in stack_plan(run).sae().named_parameters()}
        x, lam = torch.empty(run.batch, limits.width(run)), torch.empty(1, 1)
    with Peak() as peak:
        grads = closed_form(run.arch, peak.fused)(w, x, lam, torch.bfloat16)
    assert grads and cost.step_bytes(run) == pytest.approx(peak.bytes, rel=0.05)


@pytest.mark.parametrize(
    "run", [*PAPER, *map(wider, PAPER)], ids=lambda r: f"{r.lm}-{r.site}-{r.arch}"
)
def test_what_an_evaluation_adds(run, no_initial_rows):
    with torch.device("meta"):
        sae = stack_plan(run).sae().requires_grad_(False)
        x = torch.empty(limits.rows_at_once(run.M, 4096), limits.width(run))
    weights = sum(p.numel() * p.element_size() for p in sae.parameters())
    with Peak() as peak:
        f = sae.encode(x)
        on = (f > 0).float()  # as in metrics
        sae.decode(f)
    codes = 20 * min(limits.CODES, 4096 * run.M)
    assert f.numel() <= limits.CODES and on.shape == f.shape and 0.4 * codes < peak.bytes < codes
    assert (
        cost.work_bytes(run, 1, lm=False) >= weights + codes
        and cost.work_bytes(run, 9, lm=False) == 9 * weights
    )
    more = weights + cost.splice_bytes(run) + cost.forward_bytes(run)
    assert cost.work_bytes(run, 1) >= max(
        more, cost.step_bytes(run) + cost.forward_bytes(run, logits=False)
    )


@pytest.mark.parametrize("name", ["pythia-2.8b", "gemma-7b"])
def test_what_a_forward_pass_adds(name):
    run = next(r for r in paper_scale.gated_sites() if r.lm == name)
    tokens = torch.empty(
        limits.blocks_per_pass(run.context), run.context, dtype=torch.long, device="meta"
    )
    model = on_meta(name, num_hidden_layers=2, use_cache=False)
    mask = torch.empty(
        len(tokens), 1, run.context, run.context, dtype=torch.bfloat16, device="meta"
    )
    with Peak() as peak:
        logits = model(tokens, attention_mask=mask).logits
    assert logits.shape[-1] == limits.shape(name).vocab
    assert peak.bytes < cost.forward_bytes(run) < 2.5 * peak.bytes


SWITCHES = [
    {},
    {"arch": "baseline"},
    {"tie": "shared"},
    {"tie": "none"},
    {"freeze": "W_dec"},
    {"freeze": "b_dec"},
    {"freeze": "none"},
    {"auxiliary": False},
    {"step": False},
    {"centre_grad": False},
    {"magnitude_l1": True},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_operations_of_a_step(switches):
    run = Run(**switches, M=301, tokens=1280, batch=256)
    options = dict(device="cpu", dtype="float32", lam_warmup=0.0)
    stack = Stack(replace(stack_plan(run, **options), lams=(0.1, 0.2)))
    with FlopCounterMode(display=False) as counter:
        stack.train_step(torch.randn(run.batch, limits.width(run)))
    assert 2 * cost.step_flops(run) == pytest.approx(counter.get_total_flops(), rel=0.01)
    if not switches:
        assert cost.step_flops(run) == 14 * 576 * 301 * 256
    if switches == {"arch": "baseline"}:
        assert cost.step_flops(run) == 10 * 576 * 301 * 256


TINY = {"pythia-2.8b": (4, 0), "gemma-7b": (2, 2)}


@pytest.mark.parametrize("name", TINY)
def test_operations_of_the_language_model(name):
    heads, kv = TINY[name]
    changes = dict(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=heads,
        intermediate_size=80,
        vocab_size=301,
    )
    changes |= {"num_key_value_heads": kv, "head_dim": 40} if kv else {}
    model, d_head = on_meta(name, **changes), 40 if kv else 12
    shape = limits.Shape(3, 48, heads, d_head, 80, 301, kv, gated_mlp=bool(kv), tied=bool(kv))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 23, dtype=torch.long, device="meta"))
    assert shape.flops(23) * 2 * 23 == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert shape.parameters == sum(
        p.numel() for p in model.parameters() if p.dim() > 1
    )  # biases and norms left out


@pytest.mark.parametrize("site", names.SITES)
@pytest.mark.parametrize("layer", [0, 1])
def test_operations_of_a_harvest_end_at_the_site(site, layer):
    from test_activations import D_HEAD, D_MLP, D, V, make

    shape, tokens = limits.Shape(2, D, 2, D_HEAD, D_MLP, V), torch.randint(V, (3, 16))
    model = make()
    assert shape.n(site) == model.d(site)
    with FlopCounterMode(display=False) as counter:
        model.activations(tokens, [(site, layer)])
    # the output matrix, which a harvest stops short of
    more = 2 * D * D_MLP if site == "mlp_neurons" else 0
    # At attention the counter sees W_O as well, where the hook sits behind it in the same function.
    assert shape.flops(16, site, layer) - more <= counter.get_total_flops() / 48 * 1.01
    assert shape.flops(16, site, layer) >= counter.get_total_flops() / 48 * 0.99
    assert shape.flops(16, "resid_post", 1) < shape.flops(16)


def test_the_papers_sites():
    sites = paper_scale.gated_sites()
    assert [sum(r.lm == name for r in sites) for name in paper_scale.MODELS] == [1, 15, 12]
    assert len(set(sites)) == 28
    for gated in sites:
        base = wider(gated)
        narrow = (gated.lm, gated.site) == ("pythia-2.8b", "resid_post")
        assert (gated.M, base.M) == ((2**15, 3 * 2**14) if narrow else (2**17, 3 * 2**16))
        assert (
            gated.lr == 3e-4
            and gated.batch == 4096
            and gated.steps == (400_000 if "pythia" in gated.lm else 300_000)
        )
        assert (
            stack_plan(gated).events == [25_000, 50_000, 75_000, 100_000]
            and stack_plan(gated).window == 12_500
        )
        assert stack_plan(gated, lam_warmup=gated.lam_warmup).lam_share(0) == 1
        assert gated.context == names.NAMES[gated.lm].context
        assert gated.layer < limits.shape(gated.lm).layers
    assert {limits.width(r) for r in sites if r.site == "attn_z"} == {2560, 4096}


def test_a_sweep_of_the_paper_has_both_arms_at_every_site():
    runs = paper_scale.paper_runs("pareto")
    assert len(runs) == len(set(runs)) == 28 * 2 * paper_scale.LAMBDA_COUNT
    assert {r.lr for r in runs if r.arch == "baseline" and r.lm == "pythia-2.8b"} == {1e-3}
    assert {r.lm for r in paper_scale.paper_runs("gelu-1l")} == {"gelu-1l"} and len(
        paper_scale.paper_runs("gelu-1l")
    ) == 12
    with pytest.raises(KeyError, match="expected pareto or gelu-1l"):
        paper_scale.paper_runs("other")


def test_lambda_conversion_changes_units_and_nothing_else():
    n, M, s, lam = 5, 11, 7.3, 0.02
    ours, raw = GatedSAE(n, M), GatedSAE(n, M)
    with torch.no_grad():
        for p in (ours.b_gate, ours.b_mag, ours.r_mag, ours.b_dec):
            p.normal_(generator=torch.Generator().manual_seed(1))
        for (
            name,
            p,
        ) in raw.named_parameters():  # the same SAE, reading inputs that are not divided by s
            p.copy_(ours.get_parameter(name) * (s if name in ("b_gate", "b_mag", "b_dec") else 1))
    x = torch.randn(64, n)
    theirs = raw.losses(s * x, lam)
    # as the paper divides
    theirs = theirs["reconstruction"] / n + theirs["sparsity"] + theirs["auxiliary"] / n
    mine = sum(ours.losses(x, paper_scale.convert(lam, n, s)).values())
    torch.testing.assert_close(theirs, mine * s**2 / n)
    assert paper_scale.convert(1e-3, 2560, 1) == pytest.approx(2.56)


def test_the_lambdas_of_every_arm_span_the_range():
    for of_stack in cost.stacks(paper_scale.paper_runs()):
        assert (of_stack[0].lam, of_stack[-1].lam) == paper_scale.RANGE


def test_parts_hold_every_run_once_and_fit():
    gpu = gpus.GPUS["h100"]
    for stack in cost.stacks(paper_scale.paper_runs()):
        cut = gpu_parts.parts(stack, gpu.memory * 1e9)
        assert [r for part in cut for r in part.runs] == stack
        assert all(
            part.fits and sum(part.memory.values()) <= gpu.memory * 1e9 * gpu_parts.USABLE
            for part in cut
        )
        larger = [len(stack) / k for k in range(1, len(cut))]  # fewer parts, of more runs each
        fixed = {k: v for k, v in cut[0].memory.items() if k not in ("SAEs", "work")}
        for runs in larger:
            memory = gpu_parts.part_memory(stack[0], math.ceil(runs), fixed)
            assert sum(memory.values()) > gpu.memory * 1e9 * gpu_parts.USABLE


PLACEMENT = gpu_parts.Placement({}, "", 0)


@pytest.mark.parametrize("total, most", [(6, 4), (7, 2), (8, 3), (10, 4), (10, 3), (13, 5), (5, 9)])
def test_what_is_left_of_a_stack_is_cut_as_before(total, most):
    stack = [Run(lam=0.01 * (i + 1)) for i in range(total)]
    whole = [part.runs for part in gpu_parts.cut_evenly(stack, most, PLACEMENT)]
    assert (
        sum(whole, ()) == tuple(stack)
        and max(map(len, whole)) <= most
        and len(whole) == -(-total // most)
    )
    assert max(map(len, whole)) - min(map(len, whole)) <= 1
    for done in range(1, len(whole)):
        rest = stack[sum(map(len, whole[:done])) :]
        assert [part.runs for part in gpu_parts.cut_evenly(rest, most, PLACEMENT)] == whole[done:]


def test_where_the_language_model_is_can_be_settled():
    stack = [
        r
        for r in paper_scale.paper_runs()
        if (r.lm, r.site, r.layer, r.arch) == ("gemma-7b", "mlp_out", 6, "gated")
    ]
    free = gpu_parts.parts(stack, 30 * 1e9)
    assert free[0].lm_gpus == 1
    beside = gpu_parts.parts(stack, 30 * 1e9, apart=False)
    assert (
        not beside[0].fits and sum(beside[0].memory.values()) > 30e9 * gpu_parts.USABLE
    )  # it counts all that is there
    assert gpu_parts.parts(stack, 200 * 1e9, apart=True)[0].lm_gpus == 1
    assert gpu_parts.parts(stack, 200 * 1e9)[0].lm_gpus == 0


@pytest.mark.parametrize(
    "card, key",
    [
        ("Tesla T4", "t4"), ("NVIDIA L4", "l4"), ("NVIDIA A100-SXM4-40GB", "a100"), (("NVIDIA H100 "
        "80GB HBM3"), "h100"),
        ("NVIDIA L40S", None), ("", None),
    ],
)  # fmt: skip
def test_a_card_is_known_by_its_drivers_name(card, key, record):
    assert gpus.named(card) == key
    record(device="cpu")
    speed, source = estimate.measured("cpu", "cuda", card)
    assert speed == (
        gpus.GPUS[key].tflops * 1e12 * gpus.UTILISATION if key else estimate.SPEED["cuda"]
    )
    assert source.startswith(f"assumed of a {key.upper()}" if key else "assumed")


def test_chapters_04_to_06_at_gpu_scale_fit_a_t4_and_two_hours():
    t4, free = gpus.GPUS["t4"], 12e9  # Colab's host memory is 12.7 GB, a free Drive 15 GB
    named = ("pareto", "longer", "ablations", "resampling")
    runs = list(dict.fromkeys(r for name in named for r in sweeps.runs(name, "gpu")))
    assert {r.lm for r in runs} == {"gelu-1l"} and len(runs) > 30
    need = estimate.estimate(
        runs, t4.tflops * 1e12 * gpus.UTILISATION, "cuda", gpu_memory=t4.memory * 1e9
    )
    assert need.seconds < 1.75 * 3600  # what is left is for compilation, and for reading the text
    assert need.gpu < t4.memory * 1e9 * gpu_parts.USABLE and need.host < free and need.disk < free
    assert all(
        limits.streams(r) for r in runs if r.site == "mlp_neurons"
    )  # no large store to fill the Drive
    one = plan.report(
        "pareto at scale gpu", sweeps.runs("pareto", "gpu"), "t4", t4, 1, gpus.UTILISATION
    )
    assert (
        "PFLOP" in one and "dense fp32" in one and one.endswith("With: gsae run pareto --scale gpu")
    )


def test_what_is_placed_elsewhere_when_memory_is_short():
    stack = [
        r
        for r in paper_scale.paper_runs()
        if (r.lm, r.site, r.layer, r.arch) == ("gemma-7b", "mlp_out", 6, "gated")
    ]
    where = {m: gpu_parts.parts(stack, m * 1e9)[0].where for m in (200, 64, 30, 18, 12)}
    assert where[200] == "" and "buffer" in where[64] + where[30]
    assert "LM on" in where[30] and "LM on" in where[18] and where[12] == "does not fit"
    need = cost.held_bytes(stack[0]) + cost.work_bytes(stack[0], 1, lm=False)
    assert not gpu_parts.parts(stack, need / gpu_parts.USABLE * 0.99)[0].fits
    assert gpu_parts.parts(stack, need / gpu_parts.USABLE * 1.01)[0].fits
    text = plan.report("x", stack, "small", gpus.GPU(12, 100, 1), 1, 0.4)
    assert "DOES NOT FIT: 6 runs need a GPU of 16 GB at least" in text


def test_sharing_out():
    assert (
        gpu_sweep.shared_out([3, 3, 2, 2, 2], 2) == 7
    )  # 3 + 2 + 2 beside 3 + 2: longest first is not always best
    assert gpu_sweep.shared_out([1, 1, 1, 1, 4], 2) == 4
    assert (
        gpu_sweep.shared_out([6.0], 3) == 2 and gpu_sweep.shared_out([6.0, 3.0], 5) == 9 / 5
    )  # data-parallel
    assert gpu_sweep.shared_out([6.0, 3.0], 5, together=False) == 6


def test_hours_are_operations_over_rate():
    run = Run(tokens=2048, eval_tokens=128, ce_tokens=128)
    (part,) = gpu_parts.parts([run], 80 * 1e9)
    expected = {
        "train": 14 * 576 * 2304 * 2048,
        "harvest": 2048 * limits.shape("smollm2").flops(128, "mlp_out", 8),
    }
    assert {k: part.flops[k] for k in expected} == expected
    assert gpu_sweep.hours(part, gpus.GPU(80, 100, 2), 0.5) == pytest.approx(
        sum(part.flops.values()) / 5e13 / 3600
    )


def test_the_command_prints_a_plan_without_torch():
    code = (
        "import sys, gsae.cli as c; c.main(['plan', 'pareto', '--scale', 'paper']); assert "
        "'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in (
        "gelu-1l",
        "GPU-hours",
        "Disk:",
        "Sharding:",
        "With: torchrun",
        gpus.DATED,
        "80 GB",
        "989 TFLOP/s",
    ):
        assert word in done.stdout


def test_the_commands_options_override_the_table(capsys):
    words = ["plan", "pareto", "--scale", "cpu", "--gpu", "l4", "--gpus", "1"]
    assert (
        cli.main(
            [*words, "--price", "9", "--tflops", "50", "--memory", "10", "--utilisation", "0.2"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "10 GB, 50 TFLOP/s dense bf16 of which 20% is reached, $ 9 an hour" in out
        and "1 x l4" in out
    )
    assert cli.main([*words, "--utilisation", "40"]) == 1
    assert "utilisation" in capsys.readouterr().err


@pytest.fixture
def record(tmp_path, monkeypatch):
    """One run of the committed evidence, alone in a folder of its own."""
    source = min(run_files.root("cpu").glob("pilot/*.json"))
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path / "evidence"))
    target = tmp_path / "evidence" / "cpu" / "pilot" / source.name
    target.parent.mkdir(parents=True)

    def write(**origin):
        value = json.loads(source.read_text())
        value["provenance"] |= {"products": "bfloat16"} | origin
        target.write_text(json.dumps(value))
        return Run.of(value["run"])

    return write


def test_speed_is_measured_on_record_of_the_same_device(record):
    run = record(seconds=100.0, device="cpu")
    work = cost.train_flops(run) + cost.evaluation_flops(run)
    assert estimate.measured("cpu") == (work / 100, "measured in 1 runs on record")
    record(seconds=50.0, device="cpu")
    assert estimate.measured("cpu")[0] == work / 50
    speed, source = estimate.measured("cpu", "cuda")
    assert speed == estimate.SPEED["cuda"] and source.startswith("assumed")
    assert estimate.measured("smoke")[1].startswith("assumed")
    assert estimate.measured("cpu", products="float32") == (
        estimate.SPEED["cpu"],
        "assumed: no run of such a device is on record",
    )
    record(seconds=400.0, device="cpu", products="float32")
    assert estimate.measured("cpu", products="float32")[0] == work / 400
    assert estimate.measured("cpu")[1].startswith("assumed")


def test_a_run_too_short_to_time_says_nothing_of_the_speed(record):
    """Seconds are recorded to a tenth: the tiny runs of a test round to none."""
    record(seconds=0.0, device="cpu")
    assert estimate.measured("cpu")[1].startswith("assumed")


def test_an_estimate_adds_up(tmp_path):
    runs = [Run(lam=v) for v in (0.1, 0.2)] + [Run(lam=0.1, layer=20)]
    whole = estimate.estimate(runs, 1e10, cache=tmp_path)
    assert estimate.estimate(runs, 2e10).seconds == whole.seconds / 2
    rows = limits.store_rows(runs[0])
    assert rows % 127 == 0 and 1_026_048 <= rows < 1_026_048 + 127
    stores, held = 2 * rows * 576 * 2, cost.held_bytes(runs[0])
    assert whole.disk == stores + 3 * 4 * cost.parameters(runs[0]) + 2 * 2 * held
    have = tmp_path / "activations" / "smollm2" / f"mlp_out-8-{rows}-abcd" / "rows.bf16"
    have.parent.mkdir(parents=True)
    have.touch()
    assert estimate.estimate(runs, 1e10, cache=tmp_path).disk == whole.disk - stores // 2
    # One stack after another: the larger one counts. On a GPU, only held-out activations stay on
    # the host.
    assert (
        estimate.estimate(runs[:2], 1e10).host
        == whole.host
        > estimate.estimate(runs[2:], 1e10).host
    )
    gpu = estimate.estimate(runs, 1e10, "cuda")
    assert gpu.host == cost.BASE + cost.held_out_bytes(runs[0]) + cost.state_bytes(runs[0], 2)
    assert gpu.gpu == whole.host - cost.BASE - cost.held_out_bytes(runs[0])
    small = estimate.estimate(
        runs[:2], 1e10, "cuda", gpu_memory=(gpu.gpu - 1) / gpu_parts.USABLE
    )  # one SAE at a time
    assert (
        small.gpu == gpu.gpu - held
        and small.seconds == estimate.estimate(runs[:2], 1e10, "cuda").seconds
    )
    long = [
        replace(r, tokens=30_000_000) for r in runs[:2]
    ]  # streamed: each part reads the text again
    whole, cut = (
        estimate.estimate(long, 1, "cuda", gpu_memory=m)
        for m in (1e18, (gpu.gpu - 1) / gpu_parts.USABLE)
    )
    assert cut.seconds - whole.seconds == cost.harvest_flops(long[0]) and cut.gpu < whole.gpu
    assert estimate.estimate(runs[:1], 1e10).seconds * 1e10 == (
        cost.train_flops(runs[0]) + cost.harvest_flops(runs[0]) + cost.site_flops(runs[0])
        + cost.evaluation_flops(runs[0])
    )  # fmt: skip


def test_hub_text_is_kept_on_disk_alone():
    run = replace(Run(), text="some/data", tokens=1_000_000_000, M=8)
    assert (
        estimate.estimate([run], 1e10, "cuda").host
        == estimate.estimate([replace(run, tokens=10**8)], 1e10, "cuda").host
    )
    assert cost.disk_bytes([run, replace(run, lam=0.3)])["text"] == 4_000_000_000
    assert cost.disk_bytes([Run()])["text"] == 0


def test_a_long_run_streams_and_takes_no_store():
    long = replace(Run(), tokens=limits.STREAM_ABOVE + 1)
    assert limits.streams(long) and not limits.streams(Run())
    assert cost.disk_bytes([long])["stores"] == 0 < cost.disk_bytes([Run()])["stores"]
    assert (
        estimate.estimate([long], 1e10).host
        > estimate.estimate([Run()], 1e10).host + 576 * 2 * 900_000
    )
    hub = replace(Run(), text="some/data", tokens=limits.STORE // (2 * 576))
    assert not limits.streams(hub) and limits.streams(replace(hub, tokens=hub.tokens + 1))
    unknown = replace(hub, lm="other/model")
    assert not limits.streams(unknown) and limits.streams(
        replace(unknown, tokens=limits.STREAM_ABOVE + 1)
    )


@pytest.mark.parametrize("what", ["disk", "memory", "GPU memory"])
def test_what_cannot_be_held_is_refused_and_force_goes_on(
    record, tmp_path, monkeypatch, capsys, what
):
    record(device="cpu")
    runs, small = [Run()], 1_000_000
    monkeypatch.setattr(
        estimate.shutil,
        "disk_usage",
        lambda f: SimpleNamespace(free=small if what == "disk" else 10**12),
    )
    monkeypatch.setattr(estimate, "free_memory", lambda: small if what == "memory" else 10**12)
    device = "cuda" if what == "GPU memory" else "cpu"
    options = dict(device=device, gpu_free=small) if device == "cuda" else {}
    with pytest.raises(
        estimate.TooLarge, match=rf"GB of {what} are needed, 0\.0 GB are free.*--force"
    ):
        estimate.check(runs, "cpu", tmp_path, **options)
    line = estimate.check(runs, "cpu", tmp_path, force=True, **options)
    assert "of 0.0 free" in line and capsys.readouterr().err.splitlines() == [line, line]


def test_a_sweep_that_does_not_fit_is_refused_by_the_command_unless_forced(
    record, monkeypatch, capsys
):
    trained = []
    monkeypatch.setattr(estimate, "free_memory", lambda: 1_000_000)
    monkeypatch.setattr(
        "gsae.experiments.runner.train_missing", lambda missing, *args: trained.extend(missing)
    )
    assert cli.main(["run", "pilot", "--scale", "smoke"]) == 1
    assert "GB of memory are needed, 0.0 GB are free" in capsys.readouterr().err and not trained
    assert cli.main(["run", "pilot", "--scale", "smoke", "--force"]) == 0 and len(trained) == len(
        sweeps.runs("pilot", "smoke")
    )


def test_processes_of_one_machine_need_the_memory_of_each(record, tmp_path, monkeypatch):
    record(device="cpu")
    need = estimate.estimate([Run()], 1e10).host
    monkeypatch.setattr(estimate, "free_memory", lambda: need * 3)
    estimate.check([Run()], "cpu", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(estimate.TooLarge, match="of memory"):
        estimate.check([Run()], "cpu", tmp_path)


def test_a_language_model_elsewhere_takes_no_memory_of_the_training_gpu(record, tmp_path):
    run, free = Run(lm="gemma-7b", site="resid_post", layer=0, M=1024, batch=4096), int(12e9)
    on_gpu = dict(device="cuda", gpu_free=free, gpu_memory=free)
    with pytest.raises(estimate.TooLarge, match="of GPU memory"):
        estimate.check([run], "cpu", tmp_path, **on_gpu)
    estimate.check([run], "cpu", tmp_path, **on_gpu, apart=True)


@pytest.mark.parametrize("name", sweeps.EXPERIMENTS)
def test_no_stack_of_scale_cpu_takes_4_gb_of_memory(name):
    assert estimate.estimate(sweeps.runs(name, "cpu"), 1e11).host < 4e9


def test_what_fits_goes_on_with_one_line(record, tmp_path, monkeypatch, capsys):
    record(device="cpu")
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**12))
    for free in (10**12, None):  # None: the system does not say
        monkeypatch.setattr(estimate, "free_memory", lambda free=free: free)
        line = estimate.check([Run(), wider(Run())], "cpu", tmp_path)
        assert (
            line.startswith("estimate for 2 runs: memory ")
            and "measured in 1 runs on record" in line
        )
        assert capsys.readouterr().err == line + "\n"
    assert "no estimate: the shape of other/model" in estimate.check(
        [Run(lm="other/model")], "cpu", tmp_path
    )
    pinned = estimate.check([Run(lm="smollm2@abc"), wider(Run(lm="smollm2@abc"))], "cpu", tmp_path)
    assert pinned == estimate.check(
        [Run(), wider(Run())], "cpu", tmp_path
    )  # a revision changes no shape
    with pytest.raises(KeyError, match="the shape of 'other/model' is not known"):
        estimate.estimate([Run(lm="other/model")], 1e10)


def test_free_memory_is_what_the_system_says_or_its_limit(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"}
    monkeypatch.setattr(estimate.Path, "read_text", lambda self: files[str(self)])
    monkeypatch.setattr(estimate.Path, "exists", lambda self: str(self) in files)
    assert estimate.free_memory() == 5000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "1000000\n"
    assert estimate.free_memory() == 1_000_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert estimate.free_memory() == 5000 * 1024


@pytest.mark.parametrize(
    "seconds,text", [(5.4, "5 s"), (100, "2 min"), (7200, "2.0 h"), (7.2e6, "2,000.0 h")]
)
def test_duration(seconds, text):
    assert estimate.duration(seconds) == text


def test_the_ends_of_the_grids_are_part_of_chapter_4_and_without_resampling_of_chapter_6(
    monkeypatch,
):
    ends, at_all = sweeps.runs("ends", "cpu"), set(sweeps.runs("sites", "cpu"))
    usual = [run for run in ends if run.resample]
    assert {run for run in ends if not run.resample} <= set(sweeps.runs("resampling", "cpu"))
    assert {run.seed for run in usual if run.site == "resid_post"} == {0, 1}
    assert {run.lam for run in usual if run.arch == "gated"} == {
        v for lams in settings.SITE_ENDS.values() for v in lams
    }
    monkeypatch.setattr(smollm2_sites, "SITE_ENDS", {})
    before = sweeps.runs("sites", "cpu")
    assert not set(ends) & set(before) and at_all == {*before, *usual}


def test_the_speed_is_that_of_the_latest_runs_of_one_dtype(record, monkeypatch):
    """However many runs of another dtype came after them."""
    record(seconds=100.0, device="cpu")
    source = next(run_files.root("cpu").glob("pilot/*.json"))
    late = json.loads(source.read_text())
    late["provenance"] |= {"products": "float32", "seconds": 10.0}
    monkeypatch.setattr(estimate, "LATEST", 2)
    for i in range(3):
        file = source.parents[1] / f"later{i}" / source.name
        file.parent.mkdir()
        file.write_text(json.dumps(late))
        os.utime(file, (2e9, 2e9))
    assert estimate.measured("cpu")[1] == "measured in 1 runs on record"
    assert estimate.measured("cpu", products="float32")[1] == "measured in 2 runs on record"
