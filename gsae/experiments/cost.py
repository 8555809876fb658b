"""Bytes and operations of a run, counted from its fields: what `gsae.experiments.estimate` adds up.
Standard library only.
"""

from collections.abc import Sequence
from pathlib import Path

from gsae.evidence.run import Run
from gsae.experiments import limits
from gsae.experiments.grouping import groups
from gsae.experiments.limits import shape, width

BASE = 1_500_000_000  # Python, torch and the libraries, in the host's memory


# ---- The SAE


def has_closed_form(run: Run) -> bool:
    """Whether a closed form trains it: the baseline, and every arm of the Gated SAE that has the
    step function.
    """
    return run.arch == "baseline" or (run.arch == "gated" and run.step)


def matrices(run: Run) -> int:
    return 3 if run.arch == "gated" and run.tie == "none" else 2


def latent_vectors(run: Run) -> int:
    """Vectors of one number a latent: the encoder's offset; of a gated SAE b_gate and b_mag, and
    r_mag where that ties its encoders.
    """
    if run.arch == "baseline":
        return 1
    return 3 if run.tie == "r_mag" else 2


def parameters(run: Run) -> int:
    """Numbers in the SAE: encoder, dictionary, vectors."""
    n = width(run)
    return matrices(run) * n * run.M + latent_vectors(run) * run.M + n


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
    if not has_closed_form(run):
        return 10 * matrices(run) * nM + 44 * bM
    baseline = run.arch == "baseline"
    codes = 1 if baseline else 2
    early = 4 * nM + (4 + 4 * codes) * bM
    # what came back through the auxiliary decode is still there
    late = 8 * nM + (6 if baseline else 10) * bM
    return max(early, late) + 8 * run.batch * width(run)


def state_bytes(run: Run, count: int) -> int:
    """Most that a stack on a GPU takes of the host's memory: its state on the way to a checkpoint,
    or, at the start, its dictionaries on the way to the GPU.
    """
    dictionary = 4 * width(run) * run.M
    return max(count * held_bytes(run), dictionary * max(3, count + 2))


def step_flops(run: Run) -> int:
    """Operations of the matrix products of one training step: 14 n M a sample for gated, 10 n M for
    the baseline; 4 n M more for an untied encoder, 2 n M for a live auxiliary dictionary, and, by
    autograd, 2 n M for each encoder, whose input has a gradient too (`b_dec`).
    """
    return 2 * step_products(run) * width(run) * run.M * run.batch


def step_products(run: Run) -> int:
    """Products of a step, each of which multiplies a batch by an n x M matrix."""
    if run.arch == "baseline":
        return 5
    encoders = matrices(run) - 1
    products = 7 if run.auxiliary else 5
    products += 2 * (encoders - 1)
    live_dictionary = run.freeze in ("b_dec", "none")
    if run.auxiliary and live_dictionary:
        products += 1
    if not has_closed_form(run) and run.centre_grad:
        products += encoders
    return products


def train_flops(run: Run) -> int:
    return step_flops(run) * run.steps


# ---- The language model


def lm_bytes(lm: str) -> int:
    """Weights, in bf16 (the small model that ships with the package: fp32)."""
    return shape(lm).parameters * (4 if lm == "gelu-1l-mini" else 2)


def forward_bytes(run: Run, logits: bool = True) -> int:
    """Most that one forward pass adds: attention scores (bf16 and their softmax in fp32), one
    block's activations, and the logits, whose loss is taken block by block in fp32. A harvest ends
    without `logits`.
    """
    model = shape(run.lm)
    tokens = tokens_per_pass(run)
    one_block = 2 * tokens * (8 * model.d + (2 + model.gated_mlp) * model.d_mlp)
    attention_scores = tokens * run.context * model.heads * 10
    if not logits:
        return attention_scores + one_block
    loss = 2 * tokens * model.vocab + 12 * run.context * model.vocab
    return max(attention_scores, loss) + one_block


def tokens_per_pass(run: Run) -> int:
    return limits.blocks_per_pass(run.context) * run.context


def harvest_flops(run: Run) -> int:
    """Operations of one pass of the language model over the run's training text, up to its site."""
    return run.tokens * shape(run.lm).flops(run.context, run.site, run.layer)


def above_flops(run: Run) -> int:
    """Operations per token from a site's block to the loss."""
    model = shape(run.lm)
    below = model.flops(run.context, "resid_post", run.layer - 1) if run.layer else 0
    return model.flops(run.context) - below


# ---- Evaluation


def site_flops(run: Run) -> int:
    """Operations of evaluation that all runs of a site share: held-out activations; clean, zero and
    mean ablation.
    """
    model = shape(run.lm)
    held_out = run.eval_tokens * model.flops(run.context, run.site, run.layer)
    ablations = run.ce_tokens * (model.flops(run.context) + 2 * above_flops(run))
    return held_out + ablations


def evaluation_flops(run: Run) -> int:
    """Operations of evaluating one SAE: encode and decode held-out text; the layers above on
    reconstructions.
    """
    sae = (run.eval_tokens + run.ce_tokens) * 4 * width(run) * run.M
    clean = 0 if limits.keeps_splices(run) else shape(run.lm).flops(run.context)
    return sae + run.ce_tokens * (clean + above_flops(run))


def splice_bytes(run: Run) -> int:
    """Clean activations of the text for cross-entropy: of all of it where they are kept, else of
    one pass.
    """
    tokens = run.ce_tokens if limits.keeps_splices(run) else tokens_per_pass(run)
    return tokens * limits.clean_bytes(run)


def held_out_bytes(run: Run) -> int:
    """Held-out activations, bf16, in the host's memory."""
    return 2 * run.eval_tokens * width(run)


# ---- A stack: runs that differ in lambda alone


def stacks(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in lambda alone."""
    return groups(runs, lambda run: run.stack)


def work_bytes(run: Run, count: int, lm: bool = True) -> int:
    """Most that a stack of `count` SAEs takes for a while: a training step and the harvest beside
    it; all of them as modules, once they are trained; or the evaluation of one, with five matrices
    of latents in fp32, the splices, and a pass of the language model. Without `lm`, the model works
    on another device.
    """
    weights = 4 * parameters(run)
    modules = count * weights
    codes = 20 * min(limits.CODES, 4096 * run.M)
    if not lm:
        return max(step_bytes(run), modules, weights + codes)
    step = step_bytes(run) + forward_bytes(run, logits=False)
    evaluation = weights + splice_bytes(run) + max(codes, forward_bytes(run))
    return max(step, modules, evaluation)


# ---- Disk


def text_bytes(run: Run) -> int:
    """Token ids of hub text, on disk."""
    return 0 if run.text == "packaged" else 4 * run.tokens


def store_bytes(run: Run) -> int:
    """Of a store with the activations of the run's text, bf16."""
    return limits.store_rows(run) * limits.row_bytes(run)


def store_pattern(run: Run) -> str:
    """Of the store's file in a cache folder, for `glob`."""
    rows = limits.store_rows(run)
    return f"activations/{run.lm}/{run.site}-{run.layer}-{rows}-*/rows.bf16"


def disk_bytes(runs: Sequence[Run], cache: Path | None = None) -> dict[str, int]:
    """Bytes on disk: stores of sites (a finished one in `cache` is not made again), the token ids
    of hub text, final weights of every run, and the largest checkpoint twice, as the new one is
    written before the old one goes.
    """
    stores, texts = {}, {}
    for run in runs:
        pattern = store_pattern(run)
        finished = cache is not None and any(cache.glob(pattern))
        stores[pattern] = 0 if limits.streams(run) or finished else store_bytes(run)
        texts[run.lm, run.text, run.context] = text_bytes(run)
    largest = max(len(stack) * held_bytes(stack[0]) for stack in stacks(runs))
    return {
        "stores": sum(stores.values()),
        "text": sum(texts.values()),
        "weights": sum(4 * parameters(run) for run in runs),
        "checkpoints": 2 * largest,
    }
