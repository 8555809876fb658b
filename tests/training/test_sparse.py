"""The sparse products: gradients of the plain class at any density, the choice by density,
resuming, memory.
"""

import pytest
import torch
from test_plan import Peak
from test_training import ARMS, LAMS, M, assert_same, assert_trains_as_plainly, batches, n, plan

from gsae.saes import ARCHITECTURES
from gsae.system import devices, tensors
from gsae.training import loop, sparse_products
from gsae.training.closed_form import closed_form
from gsae.training.dense_products import Dense
from gsae.training.gradients import autograd_form, gradient_form
from gsae.training.stack import Stack

ALL = [("baseline", {}), *(("gated", arm) for arm in ARMS)]
OPENING = {"baseline": "b_enc", "gated": "b_gate"}
DENSITIES = {"none": -99.0, "one": -99.0, "few": -1.0, "most": 1.0, "all": 99.0}


@pytest.fixture(autouse=True)
def forms_anew():
    gradient_form.cache_clear()
    yield
    gradient_form.cache_clear()


@pytest.fixture
def always(monkeypatch):
    """The sparse products at any width and density."""
    monkeypatch.setitem(sparse_products.SHARE, "cpu", 1.0)
    monkeypatch.setattr(sparse_products, "LEAST_M", 1)


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def weights(sae, density="few", dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    w = {
        k: 0.5 * torch.randn(p.shape, generator=generator).to(dtype)
        for k, p in sae.named_parameters()
    }
    bias = next(w[k] for k in OPENING.values() if k in w)
    bias += DENSITIES[density]
    if density == "one":  # of one latent
        bias[3] = 99.0
    return w


def sparse_form(arch, fuse=lambda f: f, **switches):
    return closed_form(arch, fuse, sparse_products.chooser(fuse, M), **switches)


def assert_equal(mine, theirs, rtol, atol):
    for one, other in zip(mine, theirs, strict=True):
        assert set(one) == set(other)
        for name, t in one.items():
            torch.testing.assert_close(
                t, other[name], rtol=rtol, atol=atol, msg=name, check_dtype=False
            )


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("arch, switches", ALL, ids=str)
def test_eq8_sparse_gradients_equal_autograd_to_rounding_of_float64(
    arch, switches, density, always, double
):
    sae = ARCHITECTURES[arch](n, M, **switches).double()
    w, x, lam = (
        weights(sae, density, torch.float64),
        batches(3).double(),
        torch.tensor(0.3, dtype=torch.float64),
    )
    seen = sparse_form(arch, **switches)(w, x, lam, torch.float64)
    assert_equal(seen, autograd_form(sae)(w, x, lam, torch.float64), rtol=1e-9, atol=1e-12)
    assert (seen[1]["sparsity"] == 0) == (density == "none")


@pytest.mark.parametrize("arch, switches", ALL, ids=str)
def test_eq8_sparse_gradients_equal_autograd_in_float32(arch, switches, always):
    sae = ARCHITECTURES[arch](n, M, **switches)
    w, x, lam = weights(sae), batches(3), torch.tensor(0.3)
    want = autograd_form(sae)(w, x, lam, torch.float32)
    assert_equal(
        sparse_form(arch, **switches)(w, x, lam, torch.float32), want, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("arch, switches", ALL, ids=str)
def test_sparse_products_in_bfloat16_are_as_close_as_dense_ones(arch, switches, always):
    sae = ARCHITECTURES[arch](64, 96, **switches)
    w, x, lam = (
        weights(sae),
        torch.randn(32, 64, generator=torch.Generator().manual_seed(0)),
        torch.tensor(0.3),
    )
    exact, dense = (
        closed_form(arch, **switches)(w, x, lam, d) for d in (torch.float32, torch.bfloat16)
    )
    close = sparse_form(arch, **switches)(w, x, lam, torch.bfloat16)
    for name, g in exact[0].items():
        assert close[0][name].dtype == dense[0][name].dtype, name
        off = [(form[0][name].float() - g).norm() / g.norm() for form in (close, dense)]
        assert off[0] < 0.03 and off[0] < 1.2 * off[1] + 1e-3, name
    for name, term in exact[1].items():
        assert close[1][name].item() == pytest.approx(term.item(), rel=0.02)


@pytest.mark.parametrize(
    "M, batch, p", [(11, 7, 0.1), (24, 8, 0.02), (24, 8, 0.9), (8, 16, 0.0), (8, 16, 1.0)]
)
def test_places_are_those_of_nonzero(M, batch, p):
    is_open = torch.rand(M, batch, generator=torch.Generator().manual_seed(0)) < p
    assert torch.equal(sparse_products.places(is_open), is_open.flatten().nonzero().squeeze(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_step_twice_is_the_same_bit_for_bit(dtype, always):
    w, x = weights(ARCHITECTURES["gated"](n, M)), batches(0)
    one, two = (sparse_form("gated")(w, x, torch.tensor(0.3), dtype) for _ in range(2))
    assert_equal(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("arm", ["baseline", "gated"])
def test_sparse_steps_equal_those_of_a_plain_loop(arm, always):
    assert_trains_as_plainly(plan(arm))


# ---- Which products
# ------------------------------------------------------------------------------------------------


def test_the_choice_follows_the_share_of_open_places(monkeypatch):
    choose, p = (
        sparse_products.chooser(lambda f: f, sparse_products.LEAST_M),
        torch.full((8, 16), -1.0),
    )
    p.flatten()[: 128 // 32] = 1.0
    monkeypatch.setitem(sparse_products.SHARE, "cpu", 1 / 32)
    assert isinstance(choose(p, torch.zeros(8)), sparse_products.Open)
    p[7, 15] = 1.0
    assert type(choose(p, torch.zeros(8))) is Dense
    assert isinstance(choose(p, torch.full((8,), -2.0)), sparse_products.Open)  # the bias counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_open_is_where_the_sum_in_float32_is_positive(dtype):
    """Also at the bias's neighbours, and where p is its negative."""
    bias = torch.cat(
        [
            torch.randn(20, generator=torch.Generator().manual_seed(0)),
            torch.tensor([0.0, 0.5, -0.5]),
        ]
    )
    bar = (-bias).to(dtype)
    far = torch.full_like(bar, torch.inf)
    p = torch.stack([bar.nextafter(-far), bar, bar.nextafter(far)], 1)
    assert torch.equal(sparse_products.opened(p, bias), p.float() + bias[:, None] > 0)


@pytest.mark.parametrize("arch", OPENING)
def test_a_batch_too_dense_is_multiplied_as_ever(arch, monkeypatch):
    monkeypatch.setitem(sparse_products.SHARE, "cpu", 0.01)
    monkeypatch.setattr(sparse_products, "LEAST_M", 1)
    w, x, lam = weights(ARCHITECTURES[arch](n, M), "most"), batches(0), torch.tensor(0.3)
    assert_equal(
        sparse_form(arch)(w, x, lam, torch.float32),
        closed_form(arch)(w, x, lam, torch.float32),
        0,
        0,
    )


def test_narrow_stacks_and_those_told_not_to_never_look(monkeypatch):
    looks = []
    monkeypatch.setattr(sparse_products, "opened", lambda p, bias: looks.append(1) or p > 0)
    for wide, told in (
        (sparse_products.LEAST_M - 1, True),
        (sparse_products.LEAST_M, False),
        (sparse_products.LEAST_M, True),
    ):
        assert not looks
        w = weights(ARCHITECTURES["gated"](2, wide))
        gradient_form("gated", (), 2, wide, False, told)(
            w, torch.ones(3, 2), torch.tensor(0.1), torch.float32
        )
    assert looks


@pytest.fixture
def chosen(monkeypatch):
    """The number of open places at each sparse step, of at most 40 %."""
    seen, start = [], sparse_products.Open.__init__

    def note(self, is_open, fuse):
        start(self, is_open, fuse)
        seen.append(len(self.flat))

    monkeypatch.setattr(sparse_products, "LEAST_M", 1)
    monkeypatch.setitem(sparse_products.SHARE, "cpu", 0.4)
    monkeypatch.setattr(sparse_products.Open, "__init__", note)
    return seen


@pytest.mark.parametrize("arch", OPENING)
def test_a_run_that_changes_products_resumes_bit_for_bit(arch, chosen, tmp_path):
    p = plan(arch, steps=40)
    whole = Stack(p)
    loop.fit(whole, batches, bar=False)
    assert (
        20 < len(chosen) < 40 * len(LAMS) - 20 and len(set(chosen)) > 5
    )  # both kinds, and of many sizes
    for stop in (14, 27):
        first, path = Stack(p), tmp_path / f"{stop}.safetensors"

        def press(step, stop=stop):
            if step == stop:
                raise RuntimeError("stopped")
            return batches(step)

        with pytest.raises(RuntimeError, match="stopped"):
            loop.fit(first, press, path, every=0.0, bar=False)
        kept, read, second = tensors.state(path)["step"], [], Stack(p)
        loop.fit(
            second, lambda step, read=read: (read.append(step), batches(step))[1], path, bar=False
        )
        assert min(read) == kept and stop - 4 < kept <= stop  # a resampling reads three steps ahead
        assert_same(whole, second)


def test_a_sparse_run_ends_where_a_dense_one_does(chosen):
    ends = []
    for switch in (True, False):
        s = Stack(plan(steps=150, lams=(0.4,), names=()))
        s.sparse = switch
        loop.fit(s, batches, bar=False)
        ends.append(torch.tensor([row[0][4:8] for row in s.curve[-50:]]).mean(0))
    assert len(chosen) > 50
    torch.testing.assert_close(*ends, rtol=0.03, atol=1e-3)


def test_memory_is_below_that_of_dense_products(monkeypatch):
    """At the most open places that are gathered."""
    width, wide, batch = 16, 512, 256
    sae = ARCHITECTURES["gated"](width, wide)
    w, x = {k: p.detach() for k, p in sae.named_parameters()}, torch.randn(batch, width)
    p = (x @ w["W_gate"]).flatten().sort(descending=True).values
    w["b_gate"] -= p[int(0.98 * sparse_products.SHARE["cpu"] * p.numel())]
    used = []
    for sparsely in (False, True):
        with Peak() as peak:
            choose = (
                sparse_products.chooser(peak.fused, sparse_products.LEAST_M) if sparsely else None
            )
            closed_form("gated", peak.fused, choose)(w, x, torch.tensor(0.1), torch.bfloat16)
        used.append(peak.bytes)
    assert used[1] < used[0]


@pytest.mark.slow
@pytest.mark.skipif(not devices.compiler(), reason="torch.compile needs a C++ compiler")
def test_one_compilation_serves_any_number_of_places(always):
    form, graphs = sparse_form("gated", devices.compiled), []
    w, x, lam = weights(ARCHITECTURES["gated"](n, M)), batches(0), torch.tensor(0.3)
    for shift in (0.0, 0.2, 0.5, 0.9, 1.5, 99.0, -198.0):
        w["b_gate"] += shift
        want = closed_form("gated")(w, x, lam, torch.float32)
        assert_equal(form(w, x, lam, torch.float32), want, rtol=1e-4, atol=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] > 0
