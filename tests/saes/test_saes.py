"""Both architectures against the paper's pseudo-code (tests/reference.py): values, and the gradient
of every parameter.

Several faults of public implementations, a missing stop-gradient above all, leave every loss value
unchanged. So one function, `compare`, checks values and gradients term by term, and each fault is
built here and shown to be caught.
"""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsae.saes import ARCHITECTURES, BaselineSAE, GatedSAE, toy

b, n, M, LAM = 7, 5, 11, 0.3
ARMS = {
    "paper": {},
    "shared": {"tie": "shared"},
    "untied": {"tie": "none"},
    "frozen W_dec only": {"freeze": "W_dec"},
    "frozen b_dec only": {"freeze": "b_dec"},
    "unfrozen": {"freeze": "none"},
    "no auxiliary": {"auxiliary": False},
    "no step": {"step": False},
    "no step, shared": {"step": False, "tie": "shared"},
    "no step, untied": {"step": False, "tie": "none"},
    "centring detached": {"centre_grad": False},
    "centring detached, untied": {"centre_grad": False, "tie": "none"},
    "magnitude L1": {"magnitude_l1": True},
    "magnitude L1, no step": {"magnitude_l1": True, "step": False},
    "all at once": {
        "tie": "none",
        "freeze": "b_dec",
        "centre_grad": False,
        "magnitude_l1": True,
        "step": False,
    },
}


def data(seed=0, size=b):
    return torch.randn(
        size, n, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed)
    )


def randomise(sae, seed=0):
    """Every parameter random and non-zero, in float64; the decoder's rows not even unit."""
    generator = torch.Generator().manual_seed(seed)
    sae = sae.double()
    with torch.no_grad():
        for name, p in sae.named_parameters():
            noise = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            p.copy_(p + 0.4 * noise if name.startswith("W") else 0.5 * noise)
    return sae


def columns(sae):
    """The parameters in the paper's layout, leaves of their own graph."""
    return {k: (p.detach().T if k.startswith("W") else p.detach()).clone().requires_grad_()
            for k, p in sae.named_parameters()}  # fmt: skip


def reference_losses(sae, p, x, **more):
    if isinstance(sae, GatedSAE):
        switches = {k: getattr(sae, k) for k in sae.switches}
        return reference.batch_losses(reference.gated_losses, p, x, LAM, **switches, **more)
    return reference.batch_losses(reference.baseline_losses, p, x, LAM)


def gradients(term, parameters):
    """The gradient of one term for each name; None where no path leads there."""
    if not term.requires_grad:
        return dict.fromkeys(parameters)
    grads = torch.autograd.grad(
        term, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return dict(zip(parameters, grads, strict=True))


def compare(sae, x, values_only=False):
    """Raise AssertionError where a loss term of `sae`, or its gradient for any parameter, differs
    from the paper's.
    """
    p, own = columns(sae), dict(sae.named_parameters())
    ours, theirs = sae.losses(x, LAM), reference_losses(sae, p, x)
    assert list(ours) == list(theirs), f"terms {list(ours)}, expected {list(theirs)}"
    for term in theirs:
        torch.testing.assert_close(
            ours[term], theirs[term], rtol=1e-11, atol=1e-11, msg=f"value of {term}"
        )
        if values_only:
            continue
        mine, paper = gradients(ours[term], own), gradients(theirs[term], p)
        for name in own:
            if paper[name] is None:
                assert mine[name] is None or not mine[name].any(), (
                    f"{term} reaches {name}; in the paper it does not"
                )
            else:
                want = paper[name].T if name.startswith("W") else paper[name]
                assert mine[name] is not None, f"{term} does not reach {name}; in the paper it does"
                torch.testing.assert_close(
                    mine[name], want, rtol=1e-9, atol=1e-11, msg=f"gradient of {term}, {name}"
                )


# ---- The paper's own definitions
# ----------------------------------------------------------------------------------


def test_eq1_forward_is_decode_of_encode_and_activations_are_not_negative():
    for sae in map(randomise, (BaselineSAE(n, M), GatedSAE(n, M))):
        x, p = data(), columns(sae)
        f = sae.encode(x)
        assert (f >= 0).all() and (f == 0).any() and (f > 0).any()
        assert torch.equal(sae(x), sae.decode(f))
        assert torch.allclose(
            sae(x), torch.stack([reference.decode(p, f_k) for f_k in f]), atol=1e-12
        )


def test_eq1_dictionary_rows_start_at_unit_norm():
    for sae in (BaselineSAE(n, M), GatedSAE(n, M)):
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(M), atol=1e-6)
        assert torch.equal(getattr(sae, sae.ENCODER), sae.W_dec.T)
        assert all(not p.any() for name, p in sae.named_parameters() if not name.startswith("W"))


def test_eq2_baseline_encoder():
    sae = randomise(BaselineSAE(n, M))
    p = columns(sae)
    assert torch.allclose(
        sae.encode(data()),
        torch.stack([reference.baseline_encode(p, x) for x in data()]),
        atol=1e-12,
    )


def test_eq3_decoder():
    sae, f = randomise(GatedSAE(n, M)), torch.rand(b, M, dtype=torch.float64)
    p = columns(sae)
    assert torch.allclose(
        sae.decode(f), torch.stack([reference.decode(p, f_k) for f_k in f]), atol=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_eq4_baseline_loss_and_gradients(seed):
    compare(randomise(BaselineSAE(n, M), seed), data(seed))


@pytest.mark.parametrize("arm", ARMS)
def test_eq6_encoder_of_every_arm(arm):
    sae = randomise(GatedSAE(n, M, **ARMS[arm]))
    p, switches = columns(sae), {k: getattr(sae, k) for k in ("tie", "step", "centre_grad")}
    want = torch.stack([reference.gated_encode(p, x, **switches) for x in data()])
    assert torch.allclose(sae.encode(data()), want, atol=1e-12)
    assert (want > 0).any() and (want == 0).any()


def test_eq6_a_preactivation_of_exactly_zero_is_a_closed_gate():
    sae = GatedSAE(n, M).double()
    with torch.no_grad():
        sae.b_mag.fill_(1.0)
    x = sae.b_dec.detach().expand(
        b, n
    )  # centred input 0, so every pi_gate is exactly 0 and every pi_mag is 1
    assert not sae.encode(x).any()
    with torch.no_grad():
        sae.b_gate.fill_(1e-300)
    assert (sae.encode(x) == 1).all()


def test_eq6_an_open_gate_with_a_negative_magnitude_is_off():
    sae = GatedSAE(n, M).double()
    with torch.no_grad():
        sae.b_gate.fill_(1.0)
        sae.b_mag.fill_(-1.0)
    x = torch.zeros(b, n, dtype=torch.float64)
    assert not sae.encode(x).any()
    assert sae.losses(x, LAM, return_stats=True)[1]["l0"] == 0  # L0 counts f > 0, not open gates


def test_eq7_the_tie_scales_each_latent_by_its_own_factor():
    sae, x = randomise(GatedSAE(n, M)), data()
    W_mag = sae.W_gate * sae.r_mag.exp()  # columns, in this layout
    pi_gate, pi_mag = sae.paths(x)
    assert torch.allclose(pi_mag, (x - sae.b_dec) @ W_mag + sae.b_mag, atol=1e-12)
    assert torch.allclose(W_mag.T, reference.W_mag(columns(sae), "r_mag"), atol=1e-12)
    assert torch.allclose(pi_gate, (x - sae.b_dec) @ sae.W_gate + sae.b_gate, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arm", ARMS)
def test_eq8_loss_and_gradients_of_every_arm(arm, seed):
    compare(randomise(GatedSAE(n, M, **ARMS[arm]), seed), data(seed))


# ---- Gradients: closed forms, the table of zeros, finite differences
# -----------------------------------------------

# Which term reaches which parameter. b_dec stands in two places, as decoder bias and as centring;
# the second is the only way by which the sparsity and the auxiliary term reach it.
REACHED = {
    "reconstruction": {"W_gate", "W_mag", "r_mag", "b_mag", "W_dec", "b_dec"},
    "sparsity": {"W_gate", "b_gate", "b_dec"},
    "auxiliary": {"W_gate", "b_gate", "b_dec"},
}


def closed_forms(sae, x):
    """Gradients of the paper's loss, term by term, from the chain rule by hand; means over the
    batch.
    """
    W_gate, W_dec, b_dec = sae.W_gate.detach(), sae.W_dec.detach(), sae.b_dec.detach()
    scale = sae.r_mag.detach().exp()
    u = x - b_dec
    p = u @ W_gate
    pi_gate, pi_mag = p + sae.b_gate.detach(), p * scale + sae.b_mag.detach()
    is_open, f, a = (pi_gate > 0).double(), (pi_gate > 0) * pi_mag.relu(), pi_gate.relu()
    e, e_aux = f @ W_dec + b_dec - x, a @ W_dec + b_dec - x
    g_mag = 2 * (e @ W_dec.T) * is_open * (pi_mag > 0)
    g_sp, g_aux = LAM * is_open, 2 * (e_aux @ W_dec.T) * is_open

    def via_gate(g):
        return {"W_gate": u.T @ g, "b_gate": g.sum(0), "b_dec": -(g @ W_gate.T).sum(0)}

    h = g_mag * scale
    forms = {
        "reconstruction": {
            "W_gate": u.T @ h,
            "b_mag": g_mag.sum(0),
            "r_mag": (h * p).sum(0),
            "W_dec": f.T @ (2 * e),
            "b_dec": (2 * e - h @ W_gate.T).sum(0),
        },
        "sparsity": via_gate(g_sp),
        "auxiliary": via_gate(g_aux),
    }
    return {
        term: {name: g / len(x) for name, g in by_name.items()} for term, by_name in forms.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_eq8_gradients_equal_the_closed_forms(seed):
    sae, x = randomise(GatedSAE(n, M), seed), data(seed)
    terms, own = sae.losses(x, LAM), dict(sae.named_parameters())
    for term, forms in closed_forms(sae, x).items():
        mine = gradients(terms[term], own)
        for name in own:
            if name in forms:
                torch.testing.assert_close(
                    mine[name], forms[name], rtol=1e-9, atol=1e-12, msg=f"{term}, {name}"
                )
            else:
                assert mine[name] is None or not mine[name].any(), f"{term} reaches {name}"


@pytest.mark.parametrize("tie", ["r_mag", "none"])
def test_eq8_every_zero_of_the_gradient_table_is_exact(tie):
    sae = randomise(GatedSAE(n, M, tie=tie))
    reached = {term: set(names) for term, names in REACHED.items()}
    if tie == "none":
        reached["reconstruction"].remove(
            "W_gate"
        )  # without the tie, no path from the reconstruction to the gate
    terms, own = sae.losses(data(), LAM), dict(sae.named_parameters())
    for term in terms:
        for name, g in gradients(terms[term], own).items():
            if name in reached[term]:
                assert g is not None and g.any(), f"{term} does not reach {name}"
            else:
                assert g is None or not g.any(), f"{term} reaches {name}"


def test_eq8_the_wrong_loss_never_trains_the_gate():
    """An L1 on the binary gate (the paper's counter-example) sends it nothing: the step function
    has no slope.
    """
    sae, x = randomise(GatedSAE(n, M, tie="none")), data()
    gate = (sae.paths(x)[0] > 0).double()
    wrong = sae.losses(x, LAM)["reconstruction"] + LAM * gate.sum(-1).mean()
    grads = gradients(wrong, dict(sae.named_parameters()))
    assert grads["W_gate"] is None and grads["b_gate"] is None


@pytest.mark.parametrize(
    "arm", ["paper", "unfrozen", "untied", "no step", "centring detached", "magnitude L1"]
)
def test_eq8_gradients_agree_with_finite_differences(arm):
    """Central differences of the reference, whose stop-gradient copies stay where they are while
    parameters move.
    """
    sae, x = randomise(GatedSAE(n, M, **ARMS[arm]), 1), data(1, size=3)
    frozen, own = reference.stop_gradient(columns(sae)), dict(sae.named_parameters())
    mine = gradients(sum(sae.losses(x, LAM).values()), own)
    generator, eps = torch.Generator().manual_seed(0), 1e-6

    def moved(name, direction, by):
        p = {k: v.detach() for k, v in columns(sae).items()}
        p[name] = p[name] + by * direction
        return float(sum(reference_losses(sae, p, x, frozen=frozen).values()))

    for name in own:
        layout = own[name].T if name.startswith("W") else own[name]
        direction = torch.randn(layout.shape, dtype=torch.float64, generator=generator)
        slope = (moved(name, direction, eps) - moved(name, direction, -eps)) / (2 * eps)
        along = (
            0.0
            if mine[name] is None
            else (mine[name] * (direction.T if name.startswith("W") else direction)).sum()
        )
        assert float(along) == pytest.approx(slope, rel=1e-6, abs=1e-7), name


# ---- Faults, each caught by `compare`
# ------------------------------------------------------------------------------


class LiveWdec(GatedSAE):
    def decode_frozen(self, f):
        return f @ self.W_dec + self.b_dec.detach()


class LiveBdec(GatedSAE):
    def decode_frozen(self, f):
        return f @ self.W_dec.detach() + self.b_dec


class LiveDecoder(GatedSAE):  # what the most used library trains under this name
    def decode_frozen(self, f):
        return self.decode(f)


class DetachedCentring(GatedSAE):
    def paths(self, x):
        pre = (x - self.b_dec.detach()) @ self.W_gate
        return pre + self.b_gate, pre * self.r_mag.exp() + self.b_mag


class DetachedCentringOfTheGate(GatedSAE):
    def paths(self, x):
        pre = (x - self.b_dec.detach()) @ self.W_gate
        return pre + self.b_gate, super().paths(x)[1]


class DetachedTie(GatedSAE):
    def paths(self, x):
        return super().paths(x)[0], (
            x - self.b_dec
        ) @ self.W_gate.detach() * self.r_mag.exp() + self.b_mag


class NoBiasInAuxiliary(GatedSAE):
    def decode_frozen(self, f):
        return f @ self.W_dec.detach()


class NoCentring(GatedSAE):
    def paths(self, x):
        pre = x @ self.W_gate
        return pre + self.b_gate, pre * self.r_mag.exp() + self.b_mag


class TieByRow(GatedSAE):
    """Scales rows of W_gate (inputs) where the paper scales latents."""

    def paths(self, x):
        pre = (x - self.b_dec) @ self.W_gate
        return pre + self.b_gate, (x - self.b_dec) @ (
            self.r_mag.exp()[:n, None] * self.W_gate
        ) + self.b_mag


class ScaleWithoutExp(GatedSAE):
    def paths(self, x):
        pre = (x - self.b_dec) @ self.W_gate
        return pre + self.b_gate, pre * (1 + self.r_mag) + self.b_mag


class SharedBias(GatedSAE):
    def paths(self, x):
        pre = (x - self.b_dec) @ self.W_gate
        return pre + self.b_gate, pre * self.r_mag.exp() + self.b_gate


class SoftGate(GatedSAE):
    """A straight-through gate: same values, but the step sends a gradient."""

    def gated(self, pi_gate, pi_mag):
        gate = (pi_gate > 0) + pi_gate - pi_gate.detach()
        return gate * torch.relu(pi_mag)


def rescaled(**factors):
    """A gated SAE some of whose terms are multiplied by a factor."""

    class Rescaled(GatedSAE):
        def losses(self, x, lam, return_stats=False):
            terms = super().losses(x, lam)
            return {name: factors.get(name, 1) * term for name, term in terms.items()}

    return Rescaled


class SparsityOnMagnitudes(GatedSAE):
    def losses(self, x, lam, return_stats=False):
        return {**super().losses(x, lam), "sparsity": lam * self.encode(x).sum(-1).mean()}


class NormWeightedSparsity(GatedSAE):
    def losses(self, x, lam, return_stats=False):
        weighted = torch.relu(self.paths(x)[0]) * self.W_dec.norm(dim=1)
        return {**super().losses(x, lam), "sparsity": lam * weighted.sum(-1).mean()}


SAME_VALUES = {
    "auxiliary term decodes with the live W_dec": LiveWdec,
    "auxiliary term decodes with the live b_dec": LiveBdec,
    "auxiliary term decodes with the live decoder": LiveDecoder,
    "encoder-side centring stop-gradiented": DetachedCentring,
    "centring stop-gradiented on the gate alone": DetachedCentringOfTheGate,
    "tie stop-gradiented": DetachedTie,
    "gradient through the step": SoftGate,
}
OTHER_VALUES = {
    "no bias in the auxiliary decode": NoBiasInAuxiliary,
    "no centring": NoCentring,
    "tie scales rows": TieByRow,
    "scale without the exponential": ScaleWithoutExp,
    "one bias for both paths": SharedBias,
    "reconstruction a mean over n": rescaled(reconstruction=1 / n),
    "auxiliary term a mean over n": rescaled(auxiliary=1 / n),
    "both errors means over n": rescaled(reconstruction=1 / n, auxiliary=1 / n),
    "auxiliary weight of 1e-2": rescaled(auxiliary=0.01),
    "sparsity a mean over M": rescaled(sparsity=1 / M),
    "sparsity summed over the batch": rescaled(sparsity=b),
    "sparsity on the magnitudes": SparsityOnMagnitudes,
    "sparsity weighted by decoder norms": NormWeightedSparsity,
}


@pytest.mark.parametrize("fault", SAME_VALUES)
def test_faults_that_values_cannot_see_are_caught_by_gradients(fault):
    sae = randomise(SAME_VALUES[fault](n, M))
    compare(sae, data(), values_only=True)  # a test of values alone passes
    with pytest.raises(AssertionError, match="gradient of|reach"):
        compare(sae, data())


@pytest.mark.parametrize("fault", OTHER_VALUES)
def test_faults_in_the_values_are_caught(fault):
    with pytest.raises(AssertionError, match="value of"):
        compare(randomise(OTHER_VALUES[fault](n, M)), data())


def test_a_subclass_without_a_fault_passes():
    class Same(GatedSAE):
        pass

    compare(randomise(Same(n, M)), data())


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "paper"])
def test_every_ablation_arm_differs_from_the_paper(arm):
    """A switch that did nothing would pass its own comparison; against the paper's form it must
    not.
    """

    class Arm(GatedSAE):
        switches = ()  # so that the reference takes the paper's defaults

    with pytest.raises((AssertionError, KeyError)):
        compare(randomise(Arm(n, M, **ARMS[arm])), data())


# ---- JumpReLU (Appendix E)
# -----------------------------------------------------------------------------------------

repeatable = settings(deadline=None, derandomize=True, max_examples=60)
seeds = st.integers(0, 2**31)
number = st.floats(-3, 3, allow_nan=False, width=32)


def one_latent(seed, r_mag, b_gate, b_mag):
    """A gated SAE with one latent and no pre-bias, and inputs, all in float64."""
    sae = GatedSAE(n, 1, seed % 1000).double()
    with torch.no_grad():
        sae.r_mag.fill_(r_mag)
        sae.b_gate.fill_(b_gate)
        sae.b_mag.fill_(b_mag)
    return sae, 3 * data(seed, size=40)


@repeatable
@given(seeds, number, number, number)
def test_eq13_one_latent(seed, r_mag, b_gate, b_mag):
    sae, x = one_latent(seed, r_mag, b_gate, b_mag)
    w, w_mag = sae.W_gate[:, 0], sae.r_mag.exp() * sae.W_gate[:, 0]
    want = (x @ w + b_gate > 0) * torch.relu(x @ w_mag + b_mag)
    assert torch.allclose(sae.encode(x)[:, 0], want, rtol=1e-12, atol=1e-12)


@repeatable
@given(seeds, number)
def test_eq14_magnitude_direction_is_a_positive_multiple(seed, r_mag):
    sae, x = one_latent(seed, r_mag, 0.0, 0.0)
    pi_gate, pi_mag = sae.paths(x)
    rho = torch.tensor(r_mag, dtype=torch.float64).exp()
    assert rho > 0 and torch.allclose(pi_mag, rho * pi_gate, rtol=1e-12)


@repeatable
@given(seeds, number, number, number)
def test_eq15_gate_as_a_threshold_on_the_magnitude(seed, r_mag, b_gate, b_mag):
    sae, x = one_latent(seed, r_mag, b_gate, b_mag)
    pi_gate, pi_mag = sae.paths(x)
    theta = sae.b_mag - sae.r_mag.exp() * sae.b_gate
    clear = (pi_mag - theta).abs() > 1e-9  # ties at the threshold are decided by rounding
    assert torch.equal((pi_gate > 0)[clear], (pi_mag > theta)[clear])
    want = (pi_mag > theta) * torch.relu(pi_mag)
    assert torch.allclose(sae.encode(x)[clear], want[clear], rtol=1e-12)


@repeatable
@given(seeds, st.sampled_from([-2.0, 0.0, 2.0]))
def test_eq16_tied_gated_sae_is_a_jump_relu_sae(seed, shift):
    """Any width, any pre-bias; `shift` moves the thresholds so that both signs of theta are met."""
    sae = randomise(GatedSAE(n, M, seed % 1000), seed)
    with torch.no_grad():
        sae.b_mag.add_(shift)
    x = 2 * data(seed, size=40)
    theta = sae.b_mag - sae.r_mag.exp() * sae.b_gate
    z = sae.paths(x)[1]
    clear = (z - theta).abs() > 1e-9
    assert torch.allclose(sae.encode(x)[clear], toy.jump_relu(z, theta)[clear], rtol=1e-12)


def test_eq16_negative_threshold_needs_the_relu():
    sae, x = one_latent(0, 0.0, 1.0, -0.5)  # theta = -1.5
    z = sae.paths(x)[1]
    assert torch.allclose(sae.encode(x), toy.jump_relu(z, -1.5))
    assert not torch.allclose(sae.encode(x), z * (z > -1.5))


def test_eq16_untied_is_not_a_jump_relu():
    sae, x = randomise(GatedSAE(n, M, tie="none")), 2 * data(size=40)
    pi_gate, z = sae.paths(x)
    for i in range(M):  # no threshold separates open from closed gates for every latent
        if z[pi_gate[:, i] > 0, i].min() < z[pi_gate[:, i] <= 0, i].max():
            return
    raise AssertionError("every untied latent had a threshold")


# ---- The contract of an architecture
# -------------------------------------------------------------------------------


def count(sae):
    return sum(p.numel() for p in sae.parameters())


def test_eq7_tied_gated_sae_has_2M_more_parameters_than_the_baseline():
    base = count(BaselineSAE(n, M))
    assert base == 2 * n * M + M + n
    assert count(GatedSAE(n, M)) == base + 2 * M
    assert count(GatedSAE(n, M, tie="shared")) == base + M
    assert count(GatedSAE(n, M, tie="none")) == base + M + n * M


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shapes_names_and_dtypes(arch):
    sae = ARCHITECTURES[arch](n, M)
    shapes = {k: tuple(p.shape) for k, p in sae.named_parameters()}
    assert shapes[sae.ENCODER] == (n, M) and shapes["W_dec"] == (M, n) and shapes["b_dec"] == (n,)
    assert all(shapes[name] == (M,) for name in sae.LATENT)
    assert set(shapes) == {sae.ENCODER, "W_dec", "b_dec", *sae.LATENT}
    assert all(p.dtype == torch.float32 for p in sae.parameters())
    x = torch.randn(3, b, n)
    assert (
        sae.encode(x).shape == (3, b, M)
        and sae(x).shape == (3, b, n)
        and sae.encode(x[0, 0]).shape == (M,)
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_statistics_are_those_of_the_activations(arch):
    sae, x = randomise(ARCHITECTURES[arch](n, M)), data()
    with torch.no_grad():
        sae.get_parameter(sae.LATENT[0])[2] = -1e3  # one latent that never fires
    terms, stats = sae.losses(x, LAM, return_stats=True)
    f = sae.encode(x)
    assert not stats["fired"][2] and torch.equal(stats["fired"], (f > 0).any(0))
    assert stats["l0"].item() == pytest.approx((f > 0).sum(1).double().mean().item())
    assert torch.allclose(stats["error"], (x - sae(x)).square().sum(1)) and stats[
        "error"
    ].shape == (b,)
    assert not any(v.requires_grad for v in stats.values())
    assert all(t.dim() == 0 for t in terms.values())
    assert terms["reconstruction"].item() == pytest.approx(stats["error"].mean().item())
    plain = sae.losses(x, LAM)
    assert all(torch.equal(terms[k], plain[k]) for k in plain) and list(terms) == list(plain)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_terms_are_means_over_the_batch(arch):
    sae, x = randomise(ARCHITECTURES[arch](n, M)), data(size=2 * b)
    whole, halves = sae.losses(x, LAM), [sae.losses(part, LAM) for part in x.split(b)]
    for term in whole:
        assert whole[term].item() == pytest.approx(
            sum(h[term].item() for h in halves) / 2, rel=1e-12
        )


def test_paired_arms_start_with_the_same_dictionary_rows():
    gated, wide = GatedSAE(n, M, seed=3), BaselineSAE(n, M + M // 2, seed=3)
    assert torch.equal(wide.W_dec[:M], gated.W_dec) and torch.equal(wide.W_enc[:, :M], gated.W_gate)
    assert torch.equal(
        GatedSAE(n, M, seed=3, tie="none").W_mag, gated.W_gate
    )  # untied starts as the tied one
    assert not torch.allclose(GatedSAE(n, M, seed=4).W_dec, gated.W_dec)


def test_initialisation_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    GatedSAE(n, M), BaselineSAE(n, M)
    assert torch.equal(state, torch.get_rng_state())


def test_config_rebuilds_the_sae():
    for arm in ARMS.values():
        sae = GatedSAE(n, M, 5, **arm)
        again = GatedSAE(**sae.config())
        assert again.config() == sae.config()
        again.load_state_dict(randomise(sae).state_dict())
    assert BaselineSAE(**BaselineSAE(n, M, 5).config()).config() == {"n": n, "M": M, "seed": 5}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_in_bfloat16_stay_close(arch):
    sae, x = (
        randomise(ARCHITECTURES[arch](64, 96)).float(),
        torch.randn(32, 64, generator=torch.Generator().manual_seed(0)),
    )
    exact = sae.losses(x, LAM)
    sae.product_dtype = torch.bfloat16
    close = sae.losses(x, LAM)
    for term in exact:
        assert close[term].dtype == torch.float32
        assert close[term].item() != exact[term].item()  # the products really are in bfloat16
        assert close[term].item() == pytest.approx(exact[term].item(), rel=0.02)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        GatedSAE(0, M)
    with pytest.raises(ValueError, match="at least 1"):
        BaselineSAE(n, 0)
    unchecked = GatedSAE.__init__.__wrapped__  # the suite's shape check would refuse these first
    for switch in ("tie", "freeze"):
        with pytest.raises(ValueError, match=f"{switch} must be one of .*got 'all'"):
            unchecked(GatedSAE.__new__(GatedSAE), n, M, **{switch: "all"})
