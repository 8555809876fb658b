"""The shuffled buffer: the same rows as the store, shuffled, as a pure function of the step;
position 0; NaN.
"""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from test_activations import COUNT, D, T, Wrapped, make

from gsae.lm import buffer as streaming
from gsae.lm.harvest import harvest
from gsae.training.loop import fit
from gsae.training.schedule import Plan
from gsae.training.stack import Stack

pytestmark = pytest.mark.filterwarnings("ignore:.*of the squared norm")


class Numbered(streaming.Source):
    """A text whose row i is (i, -i, 1): rows can be told apart after any shuffling; counts what it
    reads.
    """

    site, layer, n = "resid_post", 3, 3

    def __init__(self, rows, chunk):
        self.rows, self.chunk, self.read = rows, chunk, []

    def __call__(self, i):
        self.read.append(i)
        at = torch.arange(i * self.chunk, min((i + 1) * self.chunk, self.rows)).float()
        return torch.stack([at, -at, torch.ones_like(at)], 1)


class Wide(streaming.Buffer):
    """A buffer in float32: bf16 would round row numbers."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.data, self.scale = self.data.float(), 1.0


def numbered(rows=1000, chunk=37, size=200, **options):
    return Wide(Numbered(rows, chunk), size, **options)


def order(buffer, steps, batch=11, seed=0):
    return [buffer.batch(step, batch, seed)[:, 0].tolist() for step in steps]


@pytest.mark.parametrize(
    "rows,size", [(1000, 200), (1001, 200), (1000, 333), (150, 200), (200, 200), (215, 200)]
)
def test_a_pass_gives_every_row_once_less_than_a_batch_aside(rows, size):
    buffer, steps = numbered(rows, size=size), rows // 11
    passes = [sum(order(buffer, range(e * steps, (e + 1) * steps)), []) for e in range(3)]
    for seen in passes:
        assert len(set(seen)) == len(seen) == steps * 11 and set(seen) <= set(range(rows))
    assert passes[0] != passes[1]  # another shuffling


def test_a_batch_is_a_pure_function_of_step_batch_and_seed():
    steps = range(200)  # two passes and more
    forwards = order(numbered(), steps)
    assert order(numbered(), reversed(steps))[::-1] == forwards
    hopping = np.random.default_rng(0).permutation(200).tolist()
    assert order(numbered(), hopping) == [forwards[i] for i in hopping]
    one = numbered()
    assert order(one, range(20), seed=1) != forwards[:20] == order(one, range(20))


def test_reading_on_reads_the_text_once_and_a_jump_only_what_the_buffer_holds():
    buffer = numbered(100_000, 50, 2000, sample=50)
    buffer.source.read.clear()
    order(buffer, range(600))
    assert buffer.source.read == sorted(
        set(buffer.source.read)
    )  # in the text's order, no chunk twice
    resumed = numbered(100_000, 50, 2000, sample=50)
    resumed.source.read.clear()
    assert order(resumed, [600]) == order(buffer, [600])
    assert len(resumed.source.read) * 50 <= 2000 * np.log2(50) / 2 * 1.2  # as documented
    assert order(resumed, range(601, 700)) == order(buffer, range(601, 700))


def test_a_look_ahead_over_a_refill_reads_nothing_twice():
    buffer = numbered(sample=37)
    boundary = 100 // 11
    order(buffer, range(boundary))
    before = len(buffer.source.read)
    ahead = order(buffer, range(boundary - 1, boundary + 3))  # as resampling does
    after = len(buffer.source.read)
    assert order(buffer, range(boundary - 1, boundary + 3)) == ahead
    assert len(buffer.source.read) == after > before


def test_neighbours_in_a_batch_are_no_neighbours_in_the_text():
    buffer = numbered(200_000, 500, 20_000, sample=500)
    for step in (0, 7, 400, 1500):  # both kinds of rows: just read, and left from earlier
        rows = buffer.batch(step, 100, seed=0)[:, 0].numpy()
        rho = spearmanr(rows[:-1], rows[1:]).statistic
        assert abs(rho) < 0.3  # three standard errors
        assert (
            np.ptp(rows) > 9_000 and len(set(rows // 500)) > 20
        )  # from half the buffer and more, from many chunks
    parts = [
        buffer.batch(step, 100, seed=0)[:, 0].numpy() for step in range(1000, 1100)
    ]  # one filling
    rho = spearmanr(np.concatenate(parts)[:-1], np.concatenate(parts)[1:]).statistic
    assert abs(rho) < 0.03
    assert (
        abs(spearmanr(range(1000), range(1, 1001)).statistic) == 1
    )  # what an unshuffled text would give


def test_rows_leave_by_halves():
    buffer = numbered(200_000, 500, 20_000, sample=500)
    newest = 20_000 + 15 * 10_000
    rows = torch.cat([buffer.batch(step, 100, seed=0)[:, 0] for step in range(1500, 1600)])
    assert rows.max() < newest
    for refills in (1, 2, 3, 4):
        assert (rows < newest - refills * 10_000).float().mean() == pytest.approx(
            0.5**refills, abs=0.02
        )


@pytest.fixture(scope="module")
def text():
    from datasets import Dataset

    model = make("sink", sink=True)
    ids = np.random.default_rng(0).integers(37, size=(COUNT, T))
    return model, Dataset.from_dict({"tokens": ids.astype("int32").tolist()}).with_format("numpy")


@pytest.mark.parametrize("keep_pos0", [False, True])
def test_the_same_rows_scale_and_mean_as_the_store(text, tmp_path, keep_pos0):
    model, blocks = text
    key, rows = ("mlp_out", 1), COUNT * (T - (not keep_pos0))
    options = {"name_hash": "abc", "batch": 4, "keep_pos0": keep_pos0}
    store = harvest(model, blocks, [key], rows, tmp_path, **options)[key]
    source = streaming.Source(model, blocks, *key, batch=4, keep_pos0=keep_pos0)
    buffer = streaming.Buffer(source, rows=100)
    assert (buffer.rows, buffer.n) == (store.rows, store.n) == (rows, D)
    assert buffer.scale == store.scale and buffer.top_share == store.top_share
    torch.testing.assert_close(buffer.mean, store.mean, rtol=0, atol=0)
    batch = 7 if rows % 7 == 0 else 6
    mine = torch.cat([buffer.batch(s, batch, seed=0) for s in range(rows // batch)])
    theirs = torch.cat([store.batch(s, batch, seed=0) for s in range(rows // batch)])
    assert mine.dtype == theirs.dtype == torch.float32
    assert torch.equal(
        mine[np.lexsort(mine.numpy().T)], theirs[np.lexsort(theirs.numpy().T)]
    )  # one multiset
    assert float(mine.square().sum(1).mean()) == pytest.approx(1, abs=1e-5)
    assert not torch.equal(mine, theirs)


def test_position_0_is_left_out(text):
    model, blocks = text
    norms = {}
    for keep in (False, True):
        source = streaming.Source(model, blocks, "resid_post", 0, batch=4, keep_pos0=keep)
        norms[keep] = torch.cat(
            [source(i).float().square().sum(1) for i in range(-(-source.rows // source.chunk))]
        )
    assert len(norms[False]) == COUNT * (T - 1) and len(norms[True]) == COUNT * T
    assert (
        norms[True].max() > 100 * norms[False].max()
    )  # the sink is there, and only with position 0


def test_scale_and_mean_come_from_the_start_of_the_text():
    buffer = streaming.Buffer(Numbered(1000, 37), 200, sample=74)
    rows = torch.stack([torch.arange(74.0), -torch.arange(74.0), torch.ones(74)], 1)
    assert buffer.scale == pytest.approx(float(rows.square().sum(1).mean().rsqrt()), rel=1e-6)
    torch.testing.assert_close(buffer.mean, rows.mean(0) * buffer.scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_named_and_nothing_half_filled_is_used(text, value):
    model, blocks = text
    poison = {"on": True}

    def change(tokens, found):
        if poison["on"] and (tokens == torch.tensor(blocks[41]["tokens"])).all(1).any():
            found["attn_z", 1][1, 3, 4] = value  # blocks 40 to 43 are one chunk

    buffer = streaming.Buffer(
        streaming.Source(Wrapped(model, change), blocks, "attn_z", 1, batch=4), 60, sample=24
    )
    clean = streaming.Buffer(streaming.Source(model, blocks, "attn_z", 1, batch=4), 60, sample=24)
    with pytest.raises(
        ValueError,
        match="sink: NaN or infinite activation at attn_z of layer 1, block 41 of the text",
    ):
        [buffer.batch(step, 10, seed=0) for step in range(COUNT * (T - 1) // 10)]
    poison["on"] = False
    torch.testing.assert_close(
        buffer.batch(25, 10, seed=0), clean.batch(25, 10, seed=0), rtol=0, atol=0
    )


def test_a_batch_larger_than_half_the_buffer_is_refused():
    with pytest.raises(
        ValueError, match="a batch of 101 rows needs a buffer of 202 at least, it has 200"
    ):
        numbered().batch(0, 101, seed=0)


def test_a_resumed_run_on_the_buffer_ends_with_the_same_weights(text, tmp_path):
    model, blocks = text
    plan = Plan("gated", D, 31, (0.1, 0.4), 60, 10, 1e-2, resample=(0.3,), dtype="float32")

    def batches():
        buffer = streaming.Buffer(
            streaming.Source(model, blocks, "mlp_out", 1, batch=4), rows=80, sample=48
        )
        return lambda step: buffer.batch(step, plan.batch, plan.seed)

    whole = fit(Stack(plan), batches(), bar=False)
    first, source = Stack(plan), batches()
    for _ in range(23):
        if first.step in plan.events:
            first.resample(source)
        first.train_step(source(first.step))
    first.save(tmp_path / "c.safetensors")
    read, source = [], batches()
    resumed = fit(
        Stack(plan),
        lambda step: (read.append(step), source(step))[1],
        tmp_path / "c.safetensors",
        bar=False,
    )
    assert read == list(range(23, 60))
    for a, b in zip(whole, resumed, strict=True):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_a_buffer_that_moves_to_another_memory_gives_the_same_rows():
    whole, moved = order(numbered(), range(30)), numbered()
    first = order(moved, range(13))
    moved.move("cpu")
    assert first + order(moved, range(13, 30)) == whole and moved._recent
    moved.move("meta")  # which holds no numbers: what comes next is read there
    assert not moved._recent and moved._kept == (None, None) and moved.batch(30, 11, 0).is_meta


@pytest.mark.parametrize("count, where", [(1, "cpu"), (6, "meta")])
def test_a_buffer_makes_room_on_a_small_gpu(monkeypatch, count, where):
    """`meta` stands for the GPU that the language model is on."""
    from gsae.evidence.run import Run
    from gsae.experiments import cost, gpu_parts, limits
    from gsae.experiments import site as site_module

    run = Run(tokens=limits.STREAM_ABOVE + 1)
    runs = [replace(run, lam=0.1 * (i + 1)) for i in range(6)]
    place = object.__new__(site_module.Site)
    place.run, place.model = run, SimpleNamespace(device=torch.device("meta"))
    place.__dict__["store"] = numbered()
    held, buffer = cost.held_bytes(run), limits.BUFFER * limits.row_bytes(run)
    room = count * held + cost.work_bytes(run, count, lm=False) + (buffer if count > 1 else 0)
    monkeypatch.setattr(site_module.devices, "gpu_memory", lambda: room / gpu_parts.USABLE * 1.0001)
    for part in place.parts(runs):
        assert len(part.runs) == count
        place.make_room(list(part.runs))
        assert place.store.data.device.type == where
    assert site_module.Site is site_module.Site


def test_held_out_activations_are_in_the_order_of_the_text(text, monkeypatch):
    from gsae.evidence.run import Run
    from gsae.experiments import limits
    from gsae.experiments import site as site_module
    from gsae.experiments.evaluate import Evaluation

    model, blocks = text
    monkeypatch.setattr(
        site_module.Site, "blocks", lambda self, split, count: blocks.select(range(count))
    )
    monkeypatch.setattr(limits, "blocks_per_pass", lambda context: 4)
    place = object.__new__(site_module.Site)
    place.run, place.model = (
        Run(site="mlp_out", layer=1, context=T, eval_tokens=10 * (T - 1)),
        model,
    )
    place.__dict__["store"] = SimpleNamespace(scale=2.0)
    found, groups = Evaluation(place).held_out
    tokens = torch.as_tensor(np.asarray(blocks[:10]["tokens"]))
    whole = model.activations(tokens, [place.key])[place.key][:, 1:] * 2
    torch.testing.assert_close(found.float(), whole, rtol=0.01, atol=0.01)
    assert groups.tolist() == list(range(10))


def test_the_runner_streams_a_long_run(text, tmp_path, monkeypatch):
    from gsae.evidence.run import Run
    from gsae.experiments import limits, runner
    from gsae.experiments import site as site_module
    from gsae.lm import models

    model, blocks = text
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "load", lambda name: model)
    monkeypatch.setattr(
        site_module.Site, "blocks", lambda self, split, count: blocks.select(range(count))
    )
    monkeypatch.setattr(limits, "BUFFER", 90)
    run = Run(
        site="attn_z",
        layer=1,
        context=T,
        M=31,
        tokens=270,
        batch=10,
        eval_tokens=60,
        ce_tokens=70,
        resample=(),
    )
    stored = runner.run([run], "smoke").iloc[0]
    assert list(tmp_path.glob("activations/*/*/rows.bf16"))
    shutil.rmtree(tmp_path / "activations")
    shutil.rmtree(tmp_path / "evidence")
    monkeypatch.setattr(limits, "STREAM_ABOVE", 269)
    monkeypatch.setattr(limits, "KEPT", 0)  # nor are the splices
    streamed = runner.run([run], "smoke").iloc[0]
    assert not (tmp_path / "activations").exists()  # nothing of a store
    assert streamed["ce_clean"] == stored["ce_clean"] and streamed["ce_mean"] == pytest.approx(
        stored["ce_mean"]
    )
    assert (
        streamed["fvu"] == pytest.approx(stored["fvu"], rel=0.2)
        and streamed["fvu"] != stored["fvu"]
    )  # another order
