"""Several processes: equal gradients, weights and evidence; one harvest; all stop together. Two CPU
ranks.
"""

import ast
import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_safety import BASE, HERE, LAMS, RUNS, files, tiny_world
from test_training import DEAD, M, batches, n, plan

from gsae.evidence.run import grid
from gsae.experiments import runner, sweeps
from gsae.experiments import site as site_module
from gsae.lm import harvest, models, store
from gsae.system import devices, distributed, tensors
from gsae.system.distributed import ALONE, RankError, Ranks
from gsae.training import divergence
from gsae.training import loop as loop_module
from gsae.training.gradients import gradient_form
from gsae.training.stack import Stack

SWEEP = [
    *grid(BASE, seed=[0, 1], lam=LAMS[:1]),
    *grid(BASE, lam=LAMS[:1], M=[12]),
]  # three stacks, of unequal work
ARCHES, DTYPES = ("baseline", "gated"), ("float32", "bfloat16")
# Relative, of two processes against one with the same global batch: gradients and terms, in norm
# (seen: 1.3e-7 and 0.0027), and the metrics at the end (2.4e-7 and 0.025), where rounding noise can
# be a whole step of Adam.
GRADIENTS = {"float32": 1e-5, "bfloat16": 0.01}
FINALS = {"float32": 0.01, "bfloat16": 0.08}


def wide(step):
    """Ten rows, which two ranks share."""
    return torch.cat([batches(step), batches(1000 + step)])[:10]


def even(arch="gated", **changes):
    return plan(arch, batch=10, **changes)


def gradients(arch, dtype, ranks):
    """Of the global batch, for weights away from their start."""
    p = even(arch)
    s = Stack(p, ranks)
    generator = torch.Generator().manual_seed(1)
    w = {k: t[0] + 0.3 * torch.randn(t[0].shape, generator=generator) for k, t in s.w.items()}
    x = ranks.slice(wide(0))
    grads, terms, stats = gradient_form(arch, (), n, M, False)(
        w, x, torch.tensor(0.3), getattr(torch, dtype)
    )
    if ranks.world > 1:
        grads, terms, stats = ranks.mean(grads, terms, {**stats, "spoiled": ~x.isfinite().all()})
    more = {**terms, "l0": stats["l0"], "fired": stats["fired"]}
    found = {**grads, **{f"term.{k}": t.reshape(-1) for k, t in more.items()}}
    return {f"{arch}.{dtype}.{k}": t.float() for k, t in found.items()}


def double_weights(arch, ranks):
    """Twelve steps and a resampling in float64: there a sum in another order does not turn Adam's
    sign steps around.
    """
    single = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        s = Stack(even(arch, steps=12, dtype="float64", resample=(0.5,)), ranks)
        source = lambda step: wide(step).double()
        for _ in range(6):
            s.train_step(ranks.slice(source(s.step)))
        s.silent[0, DEAD[0]] = s.plan.window
        loop_module.fit(s, source, bar=False)
        return {f"{arch}.{k}": t.clone() for k, t in s.w.items()}
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(torch.float32)


def finals(arch, dtype, ranks):
    """Mean terms and l0 of the last quarter of a run."""
    s = Stack(even(arch, steps=200, dtype=dtype), ranks)
    loop_module.fit(s, wide, bar=False)
    rows = torch.tensor([[row[4:8] for row in logged] for logged in s.curve[-50:]])
    return rows.mean(0).tolist()


def work(out: Path) -> None:
    """What each rank does before the command that it was started for; the tests below look at what
    it wrote.
    """
    ranks = distributed.start()
    assert isinstance(ranks, Ranks) and ranks is distributed.start()
    report = {"world": ranks.world, "agreed": ranks.agree([ranks.first, not ranks.first])}
    grads, weights = {}, {}
    for arch in ARCHES:
        weights |= double_weights(arch, ranks)
        for dtype in DTYPES:
            grads |= gradients(arch, dtype, ranks)
            report[f"{arch}.{dtype}"] = finals(arch, dtype, ranks)
    save_file(grads, out / f"grads-{ranks.rank}.safetensors")
    save_file(weights, out / f"weights-{ranks.rank}.safetensors")

    def spoiled(step):  # in the last rank's slice
        x = wide(step)
        x[9] *= float("nan") if step == 5 else 1
        return x

    try:
        loop_module.fit(Stack(even(), ranks), spoiled, bar=False)
    except divergence.Diverged as error:
        report["diverged"] = str(error)

    def press(step):
        if step == 7 and not ranks.first:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return wide(step)

    s = Stack(even(resample=()), ranks)
    try:
        loop_module.fit(s, press, out / "stopped.safetensors", every=1e9, bar=False)
    except KeyboardInterrupt:
        report["stopped"] = s.step
    ranks.barrier("the checkpoint")
    report["saved"] = tensors.state(out / "stopped.safetensors")["step"]

    tiny_world(setattr)
    harvested, trained, collect, fit = [], [], harvest._collect, loop_module.fit
    harvest._collect = lambda *a: (harvested.append(a[-2]), collect(*a))
    loop_module.fit = lambda s, *a, **k: (
        trained.append([s.plan.seed, s.plan.M, s.ranks.world]),
        fit(s, *a, **k),
    )[1]
    sweeps.EXPERIMENTS["pareto"] = lambda at: SWEEP
    runner.run(RUNS[1:], "smoke")  # one stack: trained together
    report |= {"harvested": harvested, "trained": trained}
    atexit.register(lambda: (out / f"report-{ranks.rank}.json").write_text(json.dumps(report)))


START = """
import os, sys, traceback
if "RANK" in os.environ:
    try:
        from pathlib import Path
        import test_distributed
        test_distributed.work(Path({out!r}))
    except BaseException:  # which Python would pass over
        traceback.print_exc()
        os._exit(1)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two ranks' work, once: the folder they wrote to, their reports, what they printed."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "sitecustomize.py").write_text(
        START.format(out=str(out))
    )  # Python runs it before the command
    environment = {**os.environ, "GSAE_CACHE": str(out), "GSAE_EVIDENCE": str(out / "evidence")}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    tests = HERE.parent
    paths = (tests.parent, tests, HERE, tests / "lm", tests / "training", out)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command += [
        "-m",
        "gsae",
        "run",
        "pareto",
        "--scale",
        "smoke",
    ]  # three stacks for two ranks: dealt out
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, [json.loads((out / f"report-{i}.json").read_text()) for i in (0, 1)], done.stdout


@pytest.mark.parametrize("dtype", DTYPES)
def test_data_parallel_gradients_equal_those_of_one_process(ranks, dtype):
    expected = {k: t for arch in ARCHES for k, t in gradients(arch, dtype, ALONE).items()}
    for i in (0, 1):
        found = {
            k: t
            for k, t in load_file(ranks[0] / f"grads-{i}.safetensors").items()
            if f".{dtype}." in k
        }
        assert set(found) == set(expected)
        for name, t in expected.items():
            assert (found[name] - t).norm() <= GRADIENTS[dtype] * t.norm(), name


def test_data_parallel_weights_equal_those_of_one_process_in_float64(ranks):
    found = [load_file(ranks[0] / f"weights-{i}.safetensors") for i in (0, 1)]
    for arch in ARCHES:
        for name, t in double_weights(arch, ALONE).items():
            assert t.dtype == torch.float64 and torch.equal(found[0][name], found[1][name]), name
            torch.testing.assert_close(found[0][name], t, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ARCHES)
def test_data_parallel_training_ends_at_the_same_metrics(ranks, arch, dtype):
    expected = torch.tensor(finals(arch, dtype, ALONE))
    for report in ranks[1]:
        torch.testing.assert_close(
            torch.tensor(report[f"{arch}.{dtype}"]), expected, rtol=FINALS[dtype], atol=1e-4
        )


def test_a_sweep_over_ranks_leaves_the_evidence_of_one_process(ranks, tmp_path, monkeypatch):
    out, reports, printed = ranks
    tiny_world(monkeypatch.setattr)
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path))
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path / "evidence"))
    runner.run(SWEEP, "smoke")
    runner.run(RUNS[1:], "smoke")
    whole, found = files(tmp_path), files(out)
    assert set(found) == set(whole) == {r.id for r in (*SWEEP, *RUNS[1:])}
    for run in SWEEP:  # each by one rank
        assert found[run.id]["metrics"] == pytest.approx(whole[run.id]["metrics"], rel=1e-4)
    for run in RUNS[1:]:  # by both, whose sums are in another order
        assert found[run.id]["metrics"]["ce_clean"] == pytest.approx(
            whole[run.id]["metrics"]["ce_clean"]
        )
        assert found[run.id]["metrics"]["fvu"] == pytest.approx(
            whole[run.id]["metrics"]["fvu"], rel=0.05
        )
    assert printed.count("loss_recovered") == 1  # one table
    (mine, other) = (r["trained"] for r in reports)
    assert len(mine) + len(other) == 5 and mine[0] == other[0] == [0, 31, 2]
    assert sorted([*mine[1:], *other[1:]]) == [[0, 12, 1], [0, 31, 1], [1, 31, 1]]
    assert {len(mine), len(other)} == {2, 3}
    assert not list(out.glob("checkpoints/*"))


def test_ranks_share_one_harvest_to_the_same_bytes(ranks, tmp_path, monkeypatch):
    out, reports, _ = ranks
    spans = [r["harvested"] for r in reports]
    assert (
        spans[0][0][0] == 0
        and spans[0][0][1] == spans[1][0][0]
        and [len(s) for s in spans] == [1, 1]
    )
    assert spans[1][0][1] == -(-280 // 6) and spans[0][0][1] % 16 == 0
    tiny_world(monkeypatch.setattr)
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path))
    site = site_module.Site(BASE, models.load("tiny"))
    (folder,) = out.glob("activations/*/*/")
    assert {p.name for p in folder.iterdir()} == {store.DATA, store.META}
    assert (folder / store.DATA).read_bytes() == (site.store.folder / store.DATA).read_bytes()


def test_a_nan_in_one_ranks_slice_stops_all_with_the_right_words(ranks):
    assert all(r["diverged"].startswith("step 5, run r1: the activations held") for r in ranks[1])


def test_all_ranks_stop_after_the_same_step_and_one_saves(ranks):
    assert len({r["stopped"] for r in ranks[1]}) == 1 and ranks[1][0]["saved"] == ranks[1][0][
        "stopped"
    ] in (6, 7, 8)
    s = Stack(even(resample=()))
    assert s.resume(ranks[0] / "stopped.safetensors")


def test_the_first_ranks_view_counts(ranks):
    assert [r["agreed"] for r in ranks[1]] == [[True, False]] * 2 and ranks[1][0]["world"] == 2


# ---- Without other ranks
# --------------------------------------------------------------------------------------------


def test_a_process_alone_joins_nothing(monkeypatch):
    monkeypatch.setattr(distributed, "Ranks", None)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.start() is ALONE
    tree = ast.parse(Path(distributed.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    inside = [x for x in imports if "torch.distributed" in ast.unparse(x)]
    assert len(inside) == 1 and inside[0] not in tree.body  # within the class that ranks alone use
    x = torch.randn(7, 5)
    assert (
        ALONE.share(13) == (0, 13)
        and ALONE.slice(x) is x
        and ALONE.agree([True, False]) == [True, False]
    )


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_work_is_dealt_out_whole_and_evenly(world):
    work = [7, 3, 3, 2, 2, 2, 1, 1]
    owner = distributed.dealt(work, world)
    load = [sum(w for w, o in zip(work, owner, strict=True) if o == rank) for rank in range(world)]
    assert sum(load) == sum(work) and owner == distributed.dealt(work, world)
    assert max(load) <= max(7, -(-sum(work) // world) + 1)


def bare(rank, world, node):
    made = object.__new__(Ranks)
    made.rank, made.world, made.node = rank, world, node
    return made


def test_slices_and_shares_cover_everything_once():
    x = torch.arange(12.0)[:, None]
    assert torch.equal(torch.cat([bare(r, 3, 3).slice(x) for r in range(3)]), x)
    with pytest.raises(RankError, match="a batch of 12 rows cannot be shared evenly by 5 ranks"):
        bare(0, 5, 5).slice(x)
    for node in (3, 2):  # of two nodes, the first one's ranks harvest
        shares = [bare(r, 3, node).share(11) for r in range(3)]
        assert sorted(i for a, b in shares for i in range(a, b)) == list(range(11))


def test_what_lacks_bfloat16_multiplies_in_float32(monkeypatch):
    for capability, expected in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert devices.product_dtype("cuda") == expected
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda fast=fast: fast)
        assert devices.product_dtype("cpu") == expected
