"""What can go wrong on the way: damaged files, full disks, NaN, Ctrl-C, killed and competing
processes. Each is named, and what was finished before stays as it was."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import SafetensorError
from test_activations import T, V, make
from test_training import assert_same, batches, plan

from gsae.evidence import provenance, run_files
from gsae.evidence.run import Run, grid
from gsae.experiments import composition, cost, gpu_parts, runner, site, sweeps
from gsae.lm import harvest as harvest_module
from gsae.lm import models
from gsae.lm import store as activations
from gsae.system import devices
from gsae.system import files as disk
from gsae.system import tensors as tensors_module
from gsae.training import divergence, resampling, stack
from gsae.training import loop as loop_module
from gsae.training.stack import Stack

HERE = Path(__file__).parent
BASE = Run(
    site="attn_z",
    layer=1,
    context=T,
    M=31,
    tokens=270,
    batch=10,
    eval_tokens=60,
    ce_tokens=70,
    resample=(0.3,),
)
LAMS = [0.05, 0.1, 0.2]
RUNS = grid(BASE, lam=LAMS)
SWEEP = grid(BASE, seed=[0, 1, 2], lam=LAMS[:2])  # three stacks of two


def tiny_world(patch) -> None:
    """Sweeps read a two-layer random language model and random text."""
    model, ids = make(), np.random.default_rng(0).integers(V, size=(53, T)).astype("int32")
    blocks = Dataset.from_dict({"tokens": ids.tolist()}).with_format("numpy")
    patch(models, "load", lambda name: model)
    patch(site.Site, "blocks", lambda self, split, count: blocks.select(range(count)))


@pytest.fixture
def world(tmp_path, monkeypatch):
    tiny_world(monkeypatch.setattr)

    def place(name):
        monkeypatch.setenv("GSAE_CACHE", str(tmp_path / name))
        monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path / name / "evidence"))
        return tmp_path / name

    place("here")
    return place


def files(folder):
    """The evidence of a folder, by run, without what differs between two makings: date and
    seconds.
    """
    found = {}
    for path in sorted(folder.glob("evidence/smoke/*/*.json")):
        record = run_files.read(path)
        found[path.stem] = {k: record[k] for k in ("metrics", "sums", "curve", "density", "run")}
    return found


@pytest.fixture
def fits(monkeypatch):
    """Which stacks `fit` trained: their lambdas, the step it started at."""
    seen, fit = [], loop_module.fit

    def watched(s, source, checkpoint=None, **options):
        at = tensors_module.state(checkpoint)["step"] if checkpoint.exists() else 0
        seen.append((s.plan.lams, at))
        return fit(s, source, checkpoint, **options)

    monkeypatch.setattr(loop_module, "fit", watched)
    return seen


def stopped_at(monkeypatch, step):
    """A sweep that Ctrl-C stops in one step of its training."""
    source = site.Site.batches

    def press(self, run):
        def read(at):
            if at == step:
                os.kill(os.getpid(), signal.SIGINT)
            return source(self, run)(at)

        return read

    with monkeypatch.context() as m:
        m.setattr(site.Site, "batches", press)
        with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
            runner.run(RUNS, "smoke")


# ---- Ctrl-C


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_half_way_through_an_update_finishes_the_step_and_saves(
    tmp_path, monkeypatch, number
):
    path, adam, calls, before = (
        tmp_path / "stack.safetensors",
        stack.adam,
        [],
        signal.getsignal(number),
    )

    def pressed(w, g, v, age, lr):
        calls.append(1)
        if (
            len(calls) == 40
        ):  # some vector of some run: weights before it are updated, those after it are not
            signal.raise_signal(number)
        adam(w, g, v, age, lr)

    whole, first, second = (Stack(plan()) for _ in range(3))
    loop_module.fit(whole, batches, bar=False)
    with monkeypatch.context() as m:
        m.setattr(stack, "adam", pressed)
        with pytest.raises(
            KeyboardInterrupt, match=r"stopped after \d of 40 steps: kept in .*stack.safetensors"
        ):
            loop_module.fit(first, batches, path, every=math.inf, bar=False)
    assert signal.getsignal(number) is before
    assert 0 < tensors_module.state(path)["step"] == first.step < 9
    loop_module.fit(second, batches, path, bar=False)
    assert_same(whole, second)


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "stack.safetensors"

    def impatient(step):
        if step == 8:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return batches(step)

    with pytest.raises(KeyboardInterrupt) as stop:
        loop_module.fit(Stack(plan(resample=())), impatient, path, every=0.0, bar=False)
    assert "stopped after" not in str(stop.value) or tensors_module.state(path)["step"] == 8
    assert tensors_module.state(path)["step"] in (7, 8) and len(list(tmp_path.iterdir())) == 1


def test_without_a_checkpoint_ctrl_c_says_that_nothing_is_kept():
    def press(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return batches(step)

    with pytest.raises(KeyboardInterrupt, match="nothing is kept"):
        loop_module.fit(Stack(plan()), press, bar=False)


def test_training_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(loop_module.fit(Stack(plan()), batches, bar=False))
    )
    thread.start()
    thread.join()
    assert len(found[0]) == 3


# ---- Batches read ahead


def test_batches_are_read_once_in_one_thread_one_ahead_and_never_past_the_end(monkeypatch):
    seen, during, step = [], [], Stack.train_step

    def source(at):
        seen.append((at, threading.get_ident()))
        return batches(at)

    def slow(self, x):
        time.sleep(0.01)
        during.append((self.step, max(at for at, _ in seen)))
        return step(self, x)

    monkeypatch.setattr(Stack, "train_step", slow)
    loop_module.fit(Stack(plan(steps=30, resample=())), source, bar=False)
    assert [at for at, _ in seen] == list(range(30)) and len({thread for _, thread in seen}) == 1
    assert during == [(i, min(i + 1, 29)) for i in range(30)]
    seen.clear()
    loop_module.fit(Stack(plan(steps=30)), source, bar=False)  # resampling reads in the same thread
    assert len({thread for _, thread in seen}) == 1 and len(seen) > 30


# ---- NaN on a device whose values are a wait


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_deferred_check_names_the_step_where_it_began(tmp_path, bad):
    read, path = [], tmp_path / "stack.safetensors"

    def spoiled(step):
        read.append(step)
        return batches(step) * (bad if step == 13 else 1)

    s = Stack(plan(steps=8000, resample=()))  # of which every 40th is logged
    s.divergence.deferred = True
    with pytest.raises(divergence.Diverged, match="step 13, run r1: the activations held"):
        loop_module.fit(s, spoiled, path, every=math.inf, bar=False)
    assert read[-1] in (40, 41) and not path.exists()
    s = Stack(plan(resample=()))
    s.divergence.deferred = True
    with pytest.raises(divergence.Diverged, match="step 13"):
        loop_module.fit(s, spoiled, path, every=0.0, bar=False)
    assert tensors_module.state(path)["step"] == 13  # none was written after it


def test_a_deferred_check_names_run_and_term():
    s = Stack(plan(lams=(0.1, math.inf, 0.1)))
    s.divergence.deferred = True
    with pytest.raises(divergence.Diverged, match="step 0, run r2: the sparsity term"):
        loop_module.fit(s, batches, bar=False)


def test_a_deferred_check_reads_nothing_from_the_device():
    s, x = Stack(plan()), torch.randn(7, 5)
    s.divergence.deferred = True
    terms = s.train_step(x)
    with torch.device("meta"):
        s.faults = torch.full((4, 3), -1)
        s.rows = []
    s.check(
        x.to("meta"), {k: t.to("meta") for k, t in list(terms.items())[:3]}
    )  # a meta tensor has no values to read


# ---- Resampling in bounded memory


def test_resampling_encodes_in_chunks_to_the_same_weights(monkeypatch):
    from test_training import with_dead_latents

    rows, seen = 28, []
    one, other = with_dead_latents(plan()), with_dead_latents(plan())
    one.resample(batches)
    forward = type(other.sae(0)).encode
    monkeypatch.setattr(resampling, "ROWS", 5)
    monkeypatch.setattr(
        type(other.sae(0)), "encode", lambda self, x: (seen.append(len(x)), forward(self, x))[1]
    )
    other.resample(batches)
    assert max(seen) == 5 and sum(seen) == 2 * rows  # two of the three runs have dead latents
    for name in one.w:
        torch.testing.assert_close(one.w[name], other.w[name], rtol=0, atol=1e-6)


# ---- Damaged stores


@pytest.fixture
def store(tmp_path):
    rows, n = 80_000, 64  # 10.24 MB: two whole segments and a part
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(0)).bfloat16()
    (tmp_path / activations.DATA).write_bytes(x.view(torch.uint16).numpy().tobytes())
    harvest_module._finish(tmp_path, n, {"rows": rows, "site": "mlp_out", "layer": 3})
    return activations.Store.open(tmp_path)


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("at", [0, 2**22 - 1, 2**22, 9_999_999, 80_000 * 128 - 1])
def test_a_flipped_bit_anywhere_in_a_store_is_found_when_it_is_read(store, at):
    flip(store.folder / activations.DATA, at)
    damaged, place = activations.Store.open(store.folder), at // 2**22 * 2**22
    with pytest.raises(
        activations.StoreError, match=rf"rows.bf16 is damaged .* byte {place:,} on.*delete .* again"
    ):
        for step in range(40):
            damaged.batch(step, 2000, seed=0)


def test_an_intact_store_is_checked_once_and_read_as_before(store, monkeypatch):
    counted, crc = [], disk.zlib.crc32
    monkeypatch.setattr(disk.zlib, "crc32", lambda part: (counted.append(len(part)), crc(part))[1])
    rows = [store.batch(step, 2000, seed=0) for step in range(80)]
    assert sum(counted) == 80_000 * 128 and len(counted) == 3
    again = activations.Store(
        store.folder, {**store.meta, "checksums": {}}
    )  # of an earlier version: not checked
    assert all(torch.equal(x, again.batch(step, 2000, seed=0)) for step, x in enumerate(rows))


@pytest.mark.parametrize("damage", ["scale", "cut"])
def test_a_changed_meta_file_is_refused(store, damage):
    path = store.folder / activations.META
    text = path.read_text()
    path.write_text(
        text[:-9] if damage == "cut" else text.replace('"scale": 0.', '"scale": 0.9', 1)
    )
    assert path.read_text() != text
    with pytest.raises(activations.StoreError, match="meta.json is damaged"):
        activations.Store.open(store.folder)


def test_a_changed_state_in_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "stack.safetensors"
    s = Stack(plan())
    loop_module.fit(s, batches, path, bar=False)
    content = path.read_bytes()
    changed = content.replace(b'\\"step\\": 40', b'\\"step\\": 39', 1)
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(tensors_module.CheckpointError, match="stack.safetensors is damaged"):
        Stack(plan()).resume(path)


# ---- Full disks


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_is_named_and_leaves_the_old_checkpoint(tmp_path, monkeypatch, error):
    path, s = tmp_path / "stack.safetensors", Stack(plan())
    s.save(path)
    before = path.read_bytes()

    def full(tensors, name, header):
        Path(name).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(tensors_module, "save_file", full)
    with pytest.raises(
        disk.WriteError, match="cannot write .*stack.safetensors: .*No space left.*make room"
    ):
        loop_module.fit(s, batches, path, every=0.0, bar=False)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_sweep_on_a_full_disk_keeps_what_is_finished_and_goes_on_from_there(
    world, monkeypatch, fits
):
    folder, write, left = world("here"), Path.write_text, [1]

    def fills_up(self, text, *args, **options):
        if ".json." in self.name and "evidence" in str(self) and not left:
            write(self, text[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        if "evidence" in str(self):
            left.pop()
        return write(self, text, *args, **options)

    with monkeypatch.context() as m:
        m.setattr(Path, "write_text", fills_up)
        with pytest.raises(disk.WriteError, match="json: .*No space left on device"):
            runner.run(RUNS, "smoke")
    assert list(files(folder)) == [RUNS[0].id] and len(list(folder.glob("evidence/smoke/*/*"))) == 1
    kept = next(folder.glob("evidence/smoke/*/*")).read_bytes()
    table = runner.run(RUNS, "smoke")
    assert set(table["status"]) == {"done"} and fits == [
        (tuple(LAMS), 0),
        (tuple(LAMS), 27),
    ]  # not a step made again
    assert next(folder.glob(f"evidence/smoke/*/{RUNS[0].id}.json")).read_bytes() == kept
    assert not list(folder.glob("checkpoints/*"))


@pytest.fixture(params=["a small disk", "small files"])
def small_disk(tmp_path, request):
    """A folder that holds no more than 1 MB; without root, one in which no file may."""
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "small files":
        resource = pytest.importorskip(
            "resource", reason="limits of a process are a matter of Unix"
        )
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        os.getuid()
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk, monkeypatch):
    path = small_disk / "a" / "weights.safetensors"
    tensors_module.write(path, {"w": torch.zeros(150_000)}, {})
    before = path.read_bytes()
    with pytest.raises(disk.WriteError, match="weights.safetensors"):
        tensors_module.write(path, {"w": torch.ones(300_000)}, {})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(disk.WriteError, match="meta.json"):
        disk.write_json(small_disk / "meta.json", {"text": "x" * 1_200_000})
    if small_disk.is_mount():
        with pytest.raises(OSError, match="make room"):
            harvest_module._allocate(small_disk / "store", 10_000, 64)
    monkeypatch.setattr(
        harvest_module.shutil, "disk_usage", lambda f: shutil._ntuple_diskusage(10**9, 0, 10**9)
    )
    with pytest.raises(disk.WriteError, match="cannot reserve 1,280,000 bytes for .*rows.bf16"):
        harvest_module._allocate(small_disk / "store", 10_000, 64)
    assert {p.name for p in small_disk.iterdir()} == {"a", "store"} and not list(
        (small_disk / "store").iterdir()
    )


# ---- Sweeps that lose a part


@pytest.fixture
def undisturbed(world):
    """The evidence of the sweep that nothing happened to."""
    folder = world("whole")
    runner.run(RUNS, "smoke")
    world("here")
    return folder


def test_a_sweep_resumes_to_the_same_evidence(world, undisturbed, monkeypatch, fits):
    fits.clear()
    stopped_at(monkeypatch, 20)
    assert not files(world("here"))
    runner.run(RUNS, "smoke")
    assert fits[0] == (tuple(LAMS), 0) and fits[1][0] == tuple(LAMS) and 18 <= fits[1][1] <= 21
    assert files(world("here")) == files(undisturbed)


def test_a_stack_whose_run_was_finished_meanwhile_goes_on_as_it_was(
    world, undisturbed, monkeypatch, fits
):
    fits.clear()
    stopped_at(monkeypatch, 20)
    here = world("here")
    source = next(undisturbed.glob(f"evidence/smoke/*/{RUNS[1].id}.json"))
    target = here / source.relative_to(undisturbed)
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)
    before = target.stat().st_mtime_ns
    runner.run(RUNS, "smoke")
    assert [lams for lams, _ in fits] == [tuple(LAMS)] * 2 and fits[1][
        1
    ] >= 18  # all three, and no step twice
    assert files(here) == files(undisturbed) and target.stat().st_mtime_ns == before
    assert not list(here.glob("checkpoints/*"))


def test_runs_added_to_a_stopped_sweep_form_a_stack_of_their_own(
    world, undisturbed, monkeypatch, fits
):
    monkeypatch.setattr(sys.modules[__name__], "RUNS", grid(BASE, lam=LAMS[:2]))
    fits.clear()
    stopped_at(monkeypatch, 20)
    runner.run(grid(BASE, lam=LAMS), "smoke")
    assert (
        [lams for lams, _ in fits] == [tuple(LAMS[:2])] * 2 + [tuple(LAMS[2:])]
        and fits[1][1] >= 18
        and not fits[2][1]
    )


def test_a_checkpoint_of_finished_runs_alone_is_deleted(
    world, undisturbed, monkeypatch, fits, capsys
):
    stopped_at(monkeypatch, 20)
    here = world("here")
    (old,) = here.glob("checkpoints/*")
    shutil.copytree(undisturbed / "evidence", here / "evidence")
    runner.run([*RUNS, *grid(BASE, lam=[0.7])], "smoke")
    assert fits[-1] == ((0.7,), 0) and not list(here.glob("checkpoints/*"))
    assert f"{old.name} holds finished runs alone: deleted" in capsys.readouterr().err


def test_a_checkpoint_of_unfinished_runs_is_kept_while_others_train(
    world, undisturbed, monkeypatch, fits, capsys
):
    stopped_at(monkeypatch, 20)
    here = world("here")
    runner.run(grid(BASE, lam=[0.7]), "smoke")
    assert fits[-1] == ((0.7,), 0) and len(list(here.glob("checkpoints/*"))) == 1
    runner.run(RUNS, "smoke")
    assert fits[-1][0] == tuple(LAMS) and fits[-1][1] >= 18
    assert {k: v for k, v in files(here).items() if k in files(undisturbed)} == files(undisturbed)
    assert not list(here.glob("checkpoints/*")) and "deleted" not in capsys.readouterr().err


def test_runs_of_one_stack_are_stored_where_each_belongs(world, monkeypatch):
    monkeypatch.setitem(sweeps.EXPERIMENTS, "few", lambda at: RUNS[1:])
    runner.run(RUNS, "smoke", home="mine")
    homes = {path.stem: path.parent.name for path in world("here").glob("evidence/smoke/*/*.json")}
    assert homes == dict(zip((r.id for r in RUNS), ("mine", "few", "few"), strict=True))


# ---- Sweeps too large for a GPU


def holds(patch, count):
    """A GPU that holds `count` SAEs of `BASE` at once; 0: none, so that everything trains
    together.
    """
    room = (
        count * cost.held_bytes(BASE) + cost.work_bytes(BASE, count, lm=False)
    ) / gpu_parts.USABLE
    patch.setattr(devices, "gpu_memory", lambda: room * 1.001 if count else 0)


def test_a_stack_that_a_gpu_does_not_hold_trains_in_parts_and_resumes_as_it_was(
    world, monkeypatch, fits
):
    lams = [0.05, 0.1, 0.2, 0.3, 0.4]
    monkeypatch.setattr(sys.modules[__name__], "RUNS", grid(BASE, lam=lams))
    holds(monkeypatch, 2)
    here = world("here")
    assert set(runner.run(RUNS, "smoke")["status"]) == {"done"}
    cut = [(0.05,), (0.1, 0.2), (0.3, 0.4)]
    assert fits == [(part, 0) for part in cut] and not list(here.glob("checkpoints/*"))
    expected = files(here)

    fits.clear()
    world("there")
    with monkeypatch.context() as m:  # stopped in the second part
        source, reads = site.Site.batches, []

        def press(self, run):
            reads.append(run.lam)
            read = source(self, run)
            stop = lambda at: (
                os.kill(os.getpid(), signal.SIGINT) if at == 20 and len(reads) == 2 else None
            )
            return lambda at: (stop(at), read(at))[1]

        m.setattr(site.Site, "batches", press)
        with pytest.raises(KeyboardInterrupt):
            runner.run(RUNS, "smoke")
    holds(monkeypatch, 5)  # another GPU: what was begun goes on as saved
    runner.run(RUNS, "smoke")
    assert [part for part, _ in fits] == [*cut[:2], *cut[1:]] and fits[2][1] >= 18
    assert files(world("there")) == expected


# ---- Several processes

WORKER = """
import sys, torch
torch.set_num_threads(1)
sys.path[:0] = {paths!r}
import test_safety as t
t.tiny_world(setattr)
t.slow_sweep(sys.argv[1], t.Path({log!r}), setattr)
"""


def slow_sweep(name, log, patch):
    """Run the sweep once told to, slowly, noting which stack is trained from which step on."""
    fit = loop_module.fit

    def watched(s, source, checkpoint, **options):
        at = tensors_module.state(checkpoint)["step"] if checkpoint.exists() else 0
        with open(log, "a") as file:
            file.write(f"{name} {s.plan.seed} {at}\n")
        return fit(s, lambda step: (time.sleep(0.05), source(step))[1], checkpoint, every=0.0)

    patch(loop_module, "fit", watched)
    if name == "victim":
        stuck_in_a_save(log.parent / "half", patch)
    if name.startswith("early"):
        meet_before_the_harvest(name, log, patch)
    Path(log.parent, name).touch()
    while not Path(log.parent, f"go-{name}").exists():
        time.sleep(0.01)
    runner.run(SWEEP, "smoke")


def stuck_in_a_save(half, patch):
    """Never rename the checkpoint of step 4, and say when it is on disk."""
    save_file = tensors_module.save_file

    def stuck(tensors, path, header):
        save_file(tensors, path, header)
        if json.loads(header["gsae"]).get("step") == 4:
            half.touch()
            time.sleep(1000)

    patch(tensors_module, "save_file", stuck)


def meet_before_the_harvest(name, log, patch):
    """Go for the store once the other process does as well; note who makes it, and take one's
    time.
    """
    harvest, collect = site.Site.harvest, harvest_module._collect

    def met(*of):
        Path(log.parent, f"at-the-store-{name}").touch()
        wait_for(lambda: len(list(log.parent.glob("at-the-store-*"))) == 2, [])
        return harvest(*of)

    def noted(*of):
        with open(log, "a") as file:
            file.write(f"{name} store 0\n")
        time.sleep(0.3)
        collect(*of)

    patch(site.Site, "harvest", met)
    patch(harvest_module, "_collect", noted)


def wait_for(condition, processes, seconds=200):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), (
            "a process failed"
        )
        time.sleep(0.02)
    return found


@pytest.fixture
def worker(world, tmp_path):
    """Starts a process that runs the sweep, by name, once `go-name` is there; ended with the
    test.
    """
    them, threads = [], torch.get_num_threads()
    code = WORKER.format(
        paths=[
            str(p)
            for p in (
                HERE.parents[1],
                HERE.parent,
                HERE,
                HERE.parent / "lm",
                HERE.parent / "training",
            )
        ],
        log=str(tmp_path / "log"),
    )

    def start(name):
        them.append(subprocess.Popen([sys.executable, "-c", code, name]))
        return them[-1]

    torch.set_num_threads(1)
    yield start
    torch.set_num_threads(threads)
    for process in them:
        process.kill()


def test_processes_share_a_sweep_and_inherit_from_one_that_was_killed(
    world, worker, tmp_path, monkeypatch
):
    """One is killed in the middle of a stack and of a save, holding its lock; another and this one
    then finish the sweep together."""
    here, log = world("here"), tmp_path / "log"
    victim, second = worker("victim"), worker("second")
    whole = world("whole")
    runner.run(SWEEP, "smoke")
    world("here")
    (tmp_path / "go-victim").touch()
    wait_for(
        lambda: (tmp_path / "half").exists() and (tmp_path / "second").exists(), [victim, second]
    )
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert sorted(path.name[0] == "." for path in here.glob("checkpoints/*")) == [
        False,
        True,
    ]  # step 3, half of 4
    for name in ("second", "third"):
        (tmp_path / f"go-{name}").touch()
    slow_sweep("third", log, monkeypatch.setattr)
    assert second.wait(100) == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    assert lines[0] == ["victim", "0", "0"] and sorted(seed for _, seed, _ in lines[1:]) == [
        "0",
        "1",
        "2",
    ]
    assert {name for name, _, _ in lines[1:]} == {"second", "third"}  # both worked
    assert {seed: at for _, seed, at in lines[1:]} == {
        "0": "3",
        "1": "0",
        "2": "0",
    }  # one went on where the victim was
    assert files(here) == files(whole) and len(files(here)) == len(SWEEP)
    assert not list(here.glob("checkpoints/*"))  # which finds names with a dot as well


def test_sites_whose_runs_are_evaluated_on_different_text_share_one_harvest(world, monkeypatch):
    made, collect = [], harvest_module._collect
    monkeypatch.setattr(
        harvest_module, "_collect", lambda *of: (made.append(sorted(of[2])), collect(*of))
    )
    other, shorter = (
        Run(**vars(BASE) | {"site": "mlp_out", "ce_tokens": 80}),
        Run(**vars(BASE) | {"tokens": 200}),
    )
    table = runner.run([BASE, other, shorter], "smoke")
    assert made == [[("attn_z", 1), ("mlp_out", 1)], [("attn_z", 1)]] and set(table["status"]) == {
        "done"
    }
    world("alone")
    alone = runner.run([other], "smoke")  # what is on record does not change
    assert alone["delta_ce"].iloc[0] == table["delta_ce"].iloc[1]


def test_two_processes_that_find_an_empty_cache_make_one_store_and_share_the_sweep(
    world, worker, tmp_path, monkeypatch
):
    here, log, other = world("here"), tmp_path / "log", worker("early-one")
    whole = world("whole")
    runner.run(SWEEP, "smoke")
    world("here")
    wait_for((tmp_path / "early-one").exists, [other])
    assert not here.exists()
    for name in ("early-one", "early-two"):
        (tmp_path / f"go-{name}").touch()
    slow_sweep("early-two", log, monkeypatch.setattr)
    assert other.wait(100) == 0
    made = sorted(tuple(line.split()[1:]) for line in log.read_text().splitlines())
    assert made == [("0", "0"), ("1", "0"), ("2", "0"), ("store", "0")]  # each once, by either
    stores = [
        {p.name: p.read_bytes() for p in root.glob("activations/*/*/*")} for root in (here, whole)
    ]
    assert stores[0] == stores[1] and set(stores[0]) == {activations.DATA, activations.META}
    assert files(here) == files(whole) and len(files(here)) == len(SWEEP)
    assert not list(here.glob("checkpoints/*"))


def test_a_lock_does_not_depend_on_which_runs_are_left():
    assert len({composition.kind(r) for r in RUNS}) == 1
    others = [*grid(BASE, seed=[1]), *grid(BASE, M=[32]), *grid(BASE, layer=[0])]
    assert len({composition.kind(r) for r in [RUNS[0], *others]}) == 4


@pytest.mark.parametrize("part", ["lambda", "key", "weights"])
def test_a_damaged_checkpoint_stops_the_sweep_by_name_and_leaves_what_is_finished(
    world, monkeypatch, part
):
    folder = world("here")
    runner.run(grid(BASE, seed=[1], lam=LAMS[:1]), "smoke")
    stopped_at(monkeypatch, 20)
    (path,), finished = folder.glob("checkpoints/*"), files(folder)
    data = bytearray(path.read_bytes())
    place = {
        "lambda": data.index(b"[0.05, 0.1") + 1,
        "key": data.index(b"lams"),
        "weights": len(data) - 40,
    }[part]
    data[place + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(tensors_module.CheckpointError, match=f"{path.name}.*Delete the file"):
        runner.run(RUNS, "smoke")
    assert files(folder) == finished and len(finished) == 1


def test_half_a_checkpoint_that_a_kill_left_is_removed(world, monkeypatch):
    folder = world("here")
    stopped_at(monkeypatch, 20)
    (path,) = folder.glob("checkpoints/*")
    half = path.with_name(f".{path.name}.123")
    half.write_bytes(path.read_bytes()[:1000])
    runner.run(RUNS, "smoke")
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("where", ["harvest", "evaluation"])
def test_nan_activations_are_named_and_leave_no_evidence(world, monkeypatch, fits, where):
    folder = world("here")
    model = models.load("tiny")
    activations_of = model.activations

    def spoiled(tokens, sites):
        found = activations_of(tokens, sites)
        if where == "harvest" or any(folder.glob(f"activations/*/*/{activations.META}")):
            found[BASE.site, BASE.layer][1, 3, 2] = float("nan")
        return found

    monkeypatch.setattr(model, "activations", spoiled)
    text = "block 1 of the text" if where == "harvest" else "block 1 of the evaluation text"
    with pytest.raises(
        ValueError, match=f"NaN or infinite activation at attn_z of layer 1, {text}"
    ):
        runner.run(RUNS, "smoke")
    assert len(fits) == (where == "evaluation") and not files(folder)


def test_an_evidence_file_under_a_wrong_hash_stops_the_sweep_by_name(world, fits):
    folder = world("here")
    runner.run(RUNS[:2], "smoke")
    (path,) = folder.glob(f"evidence/smoke/*/{RUNS[0].id}.json")
    record = json.loads(path.read_text())
    record["run"]["lam"] = 0.07
    path.write_text(json.dumps(record))
    kept = {p: p.read_bytes() for p in folder.glob("evidence/smoke/*/*")}
    with pytest.raises(
        provenance.EvidenceError, match=f"{path.name} its id is not the hash of its fields"
    ):
        runner.run(RUNS, "smoke")
    assert {p: p.read_bytes() for p in folder.glob("evidence/smoke/*/*")} == kept and len(kept) == 2
    assert len(fits) == 1  # before anything else was trained
