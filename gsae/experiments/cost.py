"""Bytes and operations of a run, counted from its fields: what `gsae.experiments.estimate` adds up.
Standard library only.
"""

from collections.abc import Sequence
from pathlib import Path

from gsae.evidence.run import Run
from gsae.experiments import limits
from gsae.experiments.limits import CODES, blocks_per_pass, clean_bytes, keeps_splices, shape, width


def plain(run: Run) -> bool:
    """Whether a closed form trains it: the baseline, and every arm of the Gated SAE that has the
    step function.
    """
    return run.arch == "baseline" or (run.arch == "gated" and run.step)


def matrices(run: Run) -> int:
    return 3 if run.arch == "gated" and run.tie == "none" else 2


def parameters(run: Run) -> int:
    """Numbers in the SAE: encoder, dictionary, vectors."""
    n, vectors = width(run), 1 if run.arch == "baseline" else 3 if run.tie == "r_mag" else 2
    return matrices(run) * n * run.M + vectors * run.M + n


def held_bytes(run: Run) -> int:
    """Kept for one SAE all through training: fp32 weights, Adam's second moments (beta1 = 0: there
    is no first moment), the age and the silence of each latent.
    """
    return 8 * parameters(run) + 8 * run.M


def step_bytes(run: Run) -> int:
    """Most that one SAE's training step adds, with compiled element-wise parts; a stack steps one
    SAE at a time.

    In units of n M: two matrices and their gradients in bf16. In units of batch * M:
    pre-activation, codes, what comes back through the decoder, the gradient at the pre-activation,
    in bf16. By autograd, most of it in fp32.
    """
    nM, bM = width(run) * run.M, run.batch * run.M
    if not plain(run):
        return 10 * matrices(run) * nM + 44 * bM
    codes = 1 if run.arch == "baseline" else 2
    # what came back through the auxiliary decode is still there
    late = 6 if run.arch == "baseline" else 10
    return max(4 * nM + (4 + 4 * codes) * bM, 8 * nM + late * bM) + 8 * run.batch * width(run)


def work_bytes(run: Run, count: int, lm: bool = True) -> int:
    """Most that a stack of `count` SAEs takes for a while: a training step and the harvest beside
    it; all of them as modules, once they are trained; or the evaluation of one, with five matrices
    of latents in fp32, the splices, and a pass of the language model. Without `lm`, the model works
    on another device.
    """
    weights, codes = 4 * parameters(run), 20 * min(CODES, 4096 * run.M)
    if not lm:
        return max(step_bytes(run), count * weights, weights + codes)
    evaluation = weights + splice_bytes(run) + max(codes, forward_bytes(run))
    return max(step_bytes(run) + forward_bytes(run, logits=False), count * weights, evaluation)


def state_bytes(run: Run, count: int) -> int:
    """Most that a stack on a GPU takes of the host's memory: its state on the way to a checkpoint,
    or, at the start, its dictionaries on the way to the GPU.
    """
    return max(count * held_bytes(run), 4 * width(run) * run.M * max(3, count + 2))


def step_flops(run: Run) -> int:
    """Operations of the matrix products of one training step: 14 n M a sample for gated, 10 n M for
    the baseline; 4 n M more for an untied encoder, 2 n M for a live auxiliary dictionary, and, by
    autograd, 2 n M for each encoder, whose input has a gradient too (`b_dec`).
    """
    if run.arch == "baseline":
        return 2 * 5 * width(run) * run.M * run.batch
    encoders = matrices(run) - 1
    products = (7 if run.auxiliary else 5) + 2 * (encoders - 1)
    products += run.auxiliary and run.freeze in ("b_dec", "none")
    if not plain(run):
        products += encoders * run.centre_grad
    return 2 * products * width(run) * run.M * run.batch


def train_flops(run: Run) -> int:
    return step_flops(run) * run.steps


def harvest_flops(run: Run) -> int:
    """Operations of one pass of the language model over the run's training text, up to its site."""
    return run.tokens * shape(run.lm).flops(run.context, run.site, run.layer)


def site_flops(run: Run) -> int:
    """Operations of evaluation that all runs of a site share: held-out activations; clean, zero and
    mean ablation.
    """
    s = shape(run.lm)
    return run.eval_tokens * s.flops(run.context, run.site, run.layer) + run.ce_tokens * (
        s.flops(run.context) + 2 * above_flops(run)
    )


def above_flops(run: Run) -> int:
    """Operations per token from a site's block to the loss."""
    s = shape(run.lm)
    return s.flops(run.context) - (
        s.flops(run.context, "resid_post", run.layer - 1) if run.layer else 0
    )


def evaluation_flops(run: Run) -> int:
    """Operations of evaluating one SAE: encode and decode held-out text; the layers above on
    reconstructions.
    """
    clean = 0 if keeps_splices(run) else shape(run.lm).flops(run.context)
    return (run.eval_tokens + run.ce_tokens) * 4 * width(run) * run.M + run.ce_tokens * (
        clean + above_flops(run)
    )


def lm_bytes(lm: str) -> int:
    """Weights, in bf16 (the small model that ships with the package: fp32)."""
    return shape(lm).parameters * (4 if lm == "gelu-1l-mini" else 2)


def forward_bytes(run: Run, logits: bool = True) -> int:
    """Most that one forward pass adds: attention scores (bf16 and their softmax in fp32), one
    block's activations, and the logits, whose loss is taken block by block in fp32. A harvest ends
    without `logits`.
    """
    s, blocks = shape(run.lm), blocks_per_pass(run.context)
    tokens = blocks * run.context
    scores = tokens * run.context * s.heads * 10
    inside = 2 * tokens * (8 * s.d + (2 + s.gated_mlp) * s.d_mlp)
    return max(scores, logits * (2 * tokens * s.vocab + 12 * run.context * s.vocab)) + inside


def splice_bytes(run: Run) -> int:
    tokens = run.ce_tokens if keeps_splices(run) else blocks_per_pass(run.context) * run.context
    return tokens * clean_bytes(run)


def held_out_bytes(run: Run) -> int:
    """Held-out activations, bf16, in the host's memory."""
    return 2 * run.eval_tokens * width(run)


def text_bytes(run: Run) -> int:
    """Token ids of hub text, on disk."""
    return 0 if run.text == "packaged" else 4 * run.tokens


BASE = 1_500_000_000  # Python, torch and the libraries, in the host's memory


def disk_bytes(runs: Sequence[Run], cache: Path | None = None) -> dict[str, int]:
    """Bytes on disk: stores of sites (a finished one in `cache` is not made again), the token ids
    of hub text, final weights of every run, and the largest checkpoint twice, as the new one is
    written before the old one goes.
    """
    stores, text = {}, {}
    for run in runs:
        name = f"activations/{run.lm}/{run.site}-{run.layer}-{limits.store_rows(run)}-*/rows.bf16"
        have = cache is not None and any(cache.glob(name))
        stores[name] = (
            0 if limits.streams(run) or have else limits.store_rows(run) * limits.row_bytes(run)
        )
        text[run.lm, run.text, run.context] = text_bytes(run)
    return {
        "stores": sum(stores.values()),
        "text": sum(text.values()),
        "weights": sum(4 * parameters(r) for r in runs),
        "checkpoints": 2 * max(len(s) * held_bytes(s[0]) for s in stacks(runs)),
    }


def stacks(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in lambda alone."""
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        found.setdefault(run.stack, []).append(run)
    return list(found.values())
