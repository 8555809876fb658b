"""The activation store: every row once, at its place; resumed, damaged and poisoned harvests; batch
order.
"""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from gsae.lm import harvest as harvest_module
from gsae.lm import models
from gsae.lm import store as store_module

T, V, D, D_HEAD, D_MLP, COUNT = 7, 37, 24, 8, 40, 53
KEYS = [("mlp_out", 0), ("attn_z", 1), ("mlp_neurons", 1)]


def make(name="tiny", sink=False) -> models.LM:
    config = dict(
        d_model=D, d_head=D_HEAD, n_heads=2, n_layers=2, n_ctx=16, d_vocab=V, d_mlp=D_MLP, seed=0
    )
    config |= dict(act_fn="gelu", normalization_type="LN", initializer_range=0.3)
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**config))
    if sink:  # the first position is huge in the residual stream, as in real models
        with torch.no_grad():
            bridge.original_model.pos.weight[0] *= 3000
    return models.LM(bridge, name)


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def blocks():
    ids = np.random.default_rng(0).integers(V, size=(COUNT, T))
    return Dataset.from_dict({"tokens": ids.astype("int32").tolist()}).with_format("numpy")


def harvest(model, blocks, folder, sites=KEYS, tokens=300, **options):
    options = {"name_hash": "abc", "batch": 4, **options}
    return harvest_module.harvest(model, blocks, sites, tokens, folder, **options)


@pytest.fixture(scope="module")
def stores(model, blocks, tmp_path_factory):
    return harvest(model, blocks, tmp_path_factory.mktemp("whole"))


def source_rows(model, blocks, key, count=50, first=1):
    """The activations in the text's order, one block at a time, in bf16: (count * rows of a block,
    n).
    """
    rows = [
        model.activations(torch.tensor(blocks[i]["tokens"])[None], [key])[key][0, first:]
        for i in range(count)
    ]
    return torch.cat(rows).bfloat16()


@pytest.mark.parametrize("key", KEYS)
def test_every_row_of_the_text_is_in_the_store_exactly_once(model, blocks, stores, key):
    store, expected = stores[key], source_rows(model, blocks, key)
    assert store.rows == len(expected) == 300 and store.n == model.d(key[0]) == expected.shape[1]
    assert store.data.dtype == torch.bfloat16
    # One row at a time and four blocks at a time may round differently in the last bit of bf16.
    distance = torch.cdist(expected.float(), store.data.float())
    match = distance.argmin(1)
    assert sorted(match.tolist()) == list(range(300))
    assert distance.gather(1, match[:, None]).max() < 0.02 * expected.float().norm(dim=1).max()
    # Shuffled over the whole store, not within a part of it: rows far apart in the text are no
    # farther apart here.
    assert abs(np.corrcoef(match.numpy(), np.arange(300))[0, 1]) < 0.25


def test_sites_of_one_pass_share_one_order(model, blocks, stores):
    matches = []
    for key in KEYS[:2]:
        distance = torch.cdist(source_rows(model, blocks, key).float(), stores[key].data.float())
        matches.append(distance.argmin(1))
    assert torch.equal(*matches)


def test_another_seed_is_another_order_of_the_same_rows(model, blocks, stores, tmp_path):
    other = harvest(model, blocks, tmp_path, KEYS[:1], seed=1)[KEYS[0]].data.float()
    mine = stores[KEYS[0]].data.float()
    assert not torch.equal(other, mine)
    torch.testing.assert_close(other.sum(0), mine.sum(0), atol=1e-3, rtol=1e-4)


def test_scaled_rows_have_unit_mean_squared_norm_and_the_recorded_mean(stores):
    for store in stores.values():
        x = store.batch(0, store.rows, seed=0)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.square().sum(1).mean(), torch.tensor(1.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.mean(0), store.mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            x.sort(0).values, (store.data.float() * store.scale).sort(0).values
        )


def test_top_share_is_that_of_the_largest_thousandth(tmp_path):
    rows, n = 2000, 5
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[:2] *= 60
    (tmp_path / store_module.DATA).write_bytes(x.view(torch.uint16).numpy().tobytes())
    with pytest.warns(UserWarning, match="resid_post of layer 3: 0.1 % of the tokens hold"):
        harvest_module._finish(tmp_path, n, {"rows": rows, "site": "resid_post", "layer": 3})
    norms = x.double().square().sum(1)
    store = store_module.Store.open(tmp_path)
    assert store.top_share == pytest.approx(
        float(norms.sort(descending=True).values[:2].sum() / norms.sum()), rel=1e-4
    )
    assert store.scale == pytest.approx(float(norms.mean() ** -0.5), rel=1e-6)


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="reads Linux's account of a process's memory"
)
def test_memory_does_not_grow_with_the_rows_read_or_harvested(model, tmp_path):
    def resident() -> int:  # bytes of stores that count as this process's memory
        areas = (
            Path("/proc/self/smaps").read_text().partition(str(tmp_path))[2].split(str(tmp_path))
        )
        return sum(int(area.split("Rss:")[1].split()[0]) * 1024 for area in areas if "Rss:" in area)

    n, rows = 512, 2**12
    (tmp_path / store_module.DATA).write_bytes(np.ones(rows * n, np.uint16).tobytes())
    harvest_module._finish(tmp_path, n, {"rows": rows, "site": "mlp_out", "layer": 0})
    store = store_module.Store.open(tmp_path)
    read = [store.batch(step, 256, seed=0) for step in range(rows // 256)]
    assert resident() < rows * n / 8 and len(torch.cat(read)) == rows

    ids = np.zeros((2**13, T), np.int32).tolist()
    blocks, seen = Dataset.from_dict({"tokens": ids}).with_format("numpy"), []
    wide = Wrapped(model, lambda tokens, found: seen.append(resident()))
    store = harvest(wide, blocks, tmp_path, [("mlp_neurons", 1)], tokens=6 * len(ids), batch=256)[
        "mlp_neurons", 1
    ]
    assert max(seen) < store.rows * D_MLP * 2 / 4


def test_position_0_is_left_out_unless_asked_for(blocks, tmp_path):
    sink, key = make("sink", sink=True), ("resid_post", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = harvest(sink, blocks, tmp_path, [key])[key]
    kept = harvest(sink, blocks, tmp_path, [key], keep_pos0=True)[key]
    assert store.rows == 300 and kept.rows == 301  # 50 blocks of 6 rows, 43 of 7
    every = source_rows(sink, blocks, key, first=0).view(50, T, D).float().square().sum(-1)
    assert every[:, 0].sum() / every.sum() > 0.99
    assert store.data.float().square().sum(1).max() <= every[:, 1:].max() * 1.02
    assert store.scale == pytest.approx(float(every[:, 1:].mean() ** -0.5), rel=1e-2)
    assert kept.scale < 0.1 * store.scale and kept.folder != store.folder


class Killed(Exception):
    pass


class Wrapped(models.LM):
    """A model whose activations pass through a function on their way out; counts its forward
    passes.
    """

    def __init__(self, model, change=lambda tokens, found: None, passes=999):
        self.__dict__.update(model.__dict__)
        self.change, self.left, self.passes = change, passes, 0

    def activations(self, tokens, sites):
        self.passes += 1
        if self.passes > self.left:
            raise Killed
        found = super().activations(tokens, sites)
        self.change(tokens, found)
        return found


def dies_after(model, passes):
    """The model, killed in the middle of a harvest."""
    return Wrapped(model, passes=passes)


@pytest.mark.parametrize("flush", [0, 30])
def test_an_interrupted_harvest_resumes_to_the_same_bytes(
    model, blocks, stores, tmp_path, monkeypatch, flush
):
    monkeypatch.setattr(harvest_module, "FLUSH_SECONDS", flush)
    with pytest.raises(Killed):
        harvest(dies_after(model, 5), blocks, tmp_path)
    folder = next(tmp_path.glob("mlp_out-0-*"))
    assert not (folder / store_module.META).exists()
    with pytest.raises(store_module.StoreError, match="no complete store"):
        store_module.Store.open(folder)
    second = dies_after(model, 99)
    resumed = harvest(second, blocks, tmp_path)
    assert second.passes == 13 - (5 if flush == 0 else 0)  # of ceil(50 / 4) passes
    for key in KEYS:
        for name in (store_module.DATA, store_module.META):
            assert (resumed[key].folder / name).read_bytes() == (
                stores[key].folder / name
            ).read_bytes()
        left = {path.name for path in resumed[key].folder.iterdir()}
        assert left == {store_module.DATA, store_module.META}


@pytest.mark.parametrize("sites", [KEYS[:2], KEYS])
def test_a_lost_file_or_another_set_of_sites_starts_over(
    model, blocks, stores, tmp_path, monkeypatch, sites
):
    monkeypatch.setattr(harvest_module, "FLUSH_SECONDS", 0)
    with pytest.raises(Killed):
        harvest(dies_after(model, 5), blocks, tmp_path, KEYS[:2])
    if sites == KEYS[:2]:
        (next(tmp_path.glob("mlp_out-0-*")) / store_module.DATA).unlink()
    resumed = harvest(model, blocks, tmp_path, sites)
    for key in sites:
        assert torch.equal(resumed[key].data, stores[key].data)


def test_a_finished_store_costs_no_forward_pass(model, blocks, tmp_path):
    harvest(model, blocks, tmp_path, KEYS[:1])
    again = dies_after(model, 0)
    harvest(again, blocks, tmp_path, KEYS[:1])
    assert again.passes == 0
    with pytest.raises(Killed):  # other text, another store
        harvest(again, blocks, tmp_path, KEYS[:1], name_hash="other")


def test_nan_and_inf_stop_the_harvest_naming_block_site_and_layer(model, blocks, tmp_path):
    def poisoned(value):
        def change(tokens, found):
            if (tokens == torch.tensor(blocks[22]["tokens"])).all(1).any():
                found["attn_z", 1][2, 3, 4] = value  # blocks 20 to 23 are one batch

        return Wrapped(model, change)

    for i, value in enumerate((float("nan"), float("inf"))):
        with pytest.raises(
            ValueError, match="tiny: NaN or infinite activation at attn_z of layer 1, block 22"
        ):
            harvest(poisoned(value), blocks, tmp_path / str(i))

    def first(tokens, found):
        for x in found.values():
            x[:, 0] = float("nan")

    harvest(Wrapped(model, first), blocks, tmp_path)  # position 0 is in no store: no reason to stop


def test_a_store_cut_short_is_detected(model, blocks, tmp_path):
    store = harvest(model, blocks, tmp_path, KEYS[:1])[KEYS[0]]
    path = store.folder / store_module.DATA
    with open(path, "r+b") as file:
        file.truncate(14398)
    with pytest.raises(
        store_module.StoreError, match=r"14,398 bytes, expected 14,400 \(300 rows of 24.*delete"
    ):
        store_module.Store.open(store.folder)
    with pytest.raises(store_module.StoreError):
        harvest(model, blocks, tmp_path, KEYS[:1])
    path.unlink()
    with pytest.raises(store_module.StoreError, match="has 0 bytes"):
        store_module.Store.open(store.folder)


def test_a_store_cut_short_after_it_was_checked_gives_no_other_rows(numbered):
    for step in range(10):
        numbered.batch(step, 23, seed=0)  # all segments are read and checked
    with open(numbered.folder / store_module.DATA, "r+b") as file:
        file.truncate(200 * 3 * 2)
    with pytest.raises(store_module.StoreError, match="cut short: it ends before row 2"):
        for step in range(10):
            assert len(numbered.batch(step, 23, seed=0).unique(dim=0)) == 23


def test_too_little_text_or_disk_is_said_before_the_first_pass(
    model, blocks, tmp_path, monkeypatch
):
    silent = dies_after(model, 0)
    with pytest.raises(ValueError, match="319 tokens need 54 blocks of 6 rows, the text has 53"):
        harvest(silent, blocks, tmp_path, tokens=319)
    monkeypatch.setattr(
        harvest_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100)
    )
    with pytest.raises(OSError, match="disk has 0.0 GB free: make room"):
        harvest(silent, blocks, tmp_path)


@pytest.fixture
def numbered(tmp_path):
    """A store whose row i is (i, i, i), unscaled."""
    rows = 230
    x = torch.arange(rows).float()[:, None].expand(rows, 3).bfloat16()
    (tmp_path / store_module.DATA).write_bytes(x.contiguous().view(torch.uint16).numpy().tobytes())
    meta = {
        "n": 3,
        "rows": rows,
        "scale": 1.0,
        "mean": [0.0] * 3,
        "top_share": 0.0,
        "complete": True,
    }
    (tmp_path / store_module.META).write_text(json.dumps(meta))
    return store_module.Store.open(tmp_path)


def test_an_epoch_visits_no_row_twice_and_leaves_out_less_than_a_batch(numbered):
    for epoch in range(3):
        seen = torch.cat([numbered.batch(epoch * 20 + i, 11, seed=5)[:, 0] for i in range(20)])
        assert seen.unique().numel() == 220
    with pytest.raises(ValueError, match="a batch of 231 rows from a store of 230"):
        numbered.batch(0, 231, seed=0)


def test_order_is_a_pure_function_of_seed_and_step(numbered):
    def order(seed, steps):
        return [numbered.batch(step, 11, seed)[:, 0].tolist() for step in steps]

    forwards = order(0, range(60))
    store_module._epoch.cache_clear()
    assert (
        order(0, range(59, -1, -1))[::-1] == forwards
    )  # any step can be read directly: that is how runs resume
    assert order(1, range(20)) != forwards[:20]
    assert sorted(map(min, forwards[:20])) != sorted(
        map(min, order(1, range(20)))
    )  # other batches, too
    assert forwards[:20] != forwards[20:40]
    assert numbered.batch(7, 11, 0).shape == (11, 3)
