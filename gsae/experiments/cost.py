"""Bytes and operations of a run, counted from its fields: what `gsae.experiments.estimate` adds up. Standard library
only.
"""

from dataclasses import dataclass

from gsae.experiments.sweeps import Run

STORE = 10_000_000_000  # bytes; activations that take more are read from a shuffled buffer, others from a store on disk
STREAM_ABOVE = 10_000_000  # tokens; the same on the packaged text, and where the width of the model is not known here
BUFFER = 1_000_000  # rows of that buffer, as in the paper
PASS = 8192  # tokens of one forward pass of the language model, at most 16 blocks
CODES = 2**26  # numbers in one matrix of latents that an evaluation makes: 0.27 GB in fp32
KEPT = 4_000_000_000  # bytes; clean activations that take more are not kept for the next SAE's evaluation


@dataclass(frozen=True)
class Shape:
    """The public shape of a language model, as its config gives it. Biases and norms (below 0.2 %) are left out."""

    layers: int
    d: int
    heads: int
    d_head: int
    d_mlp: int
    vocab: int
    kv_heads: int = 0  # 0: as many as heads
    gated_mlp: bool = False
    tied: bool = False  # whether embedding and unembedding are one matrix
    positions: int = 0  # learned position vectors

    def n(self, site: str) -> int:
        """Width of a site's activations."""
        return {"attn_z": self.heads * self.d_head, "mlp_neurons": self.d_mlp}.get(site, self.d)

    @property
    def attention(self) -> int:
        """Weights of one block's query, key and value; the output matrix has `heads * d_head * d` more."""
        return self.d * self.d_head * (self.heads + 2 * (self.kv_heads or self.heads))

    @property
    def block(self) -> int:
        """Weights of one block."""
        return self.attention + self.heads * self.d_head * self.d + (2 + self.gated_mlp) * self.d * self.d_mlp

    @property
    def parameters(self) -> int:
        return self.layers * self.block + self.d * ((2 - self.tied) * self.vocab + self.positions)

    def flops(self, context: int, site: str | None = None, layer: int = 0) -> int:
        """Operations per token of a forward pass that ends at a site; without one, of the whole pass."""
        mix = 4 * context * self.heads * self.d_head  # scores and their product with the values, not only causal ones
        if site is None:
            return self.layers * (2 * self.block + mix) + 2 * self.d * self.vocab
        return layer * (2 * self.block + mix) + 2 * (self.attention if site == "attn_z" else self.block) + mix


SHAPES = {  # of the models' public configs
    "gelu-1l-mini": Shape(1, 128, 4, 32, 512, 4096, positions=128),
    "smollm2": Shape(30, 576, 9, 64, 1536, 49_152, kv_heads=3, gated_mlp=True, tied=True),
    "gelu-1l": Shape(1, 512, 8, 64, 2048, 48_262, positions=1024),
    "pythia-2.8b": Shape(32, 2560, 32, 80, 10_240, 50_304),
    "gemma-7b": Shape(28, 3072, 16, 256, 24_576, 256_000, gated_mlp=True, tied=True),
}


def known(lm: str) -> bool:
    return lm.partition("@")[0] in SHAPES


def shape(lm: str) -> Shape:
    """A language model's shape, at any revision. Raises KeyError, naming those known, for one not in the table."""
    if not known(lm):
        raise KeyError(
            f"the shape of {lm!r} is not known: add it to gsae.experiments.cost.SHAPES; known are {', '.join(SHAPES)}"
        )
    return SHAPES[lm.partition("@")[0]]


def width(run: Run) -> int:
    return shape(run.lm).n(run.site)


def streams(run: Run) -> bool:
    """Whether a run reads its activations from a buffer: a store of as many would fill the disk."""
    if run.text == "packaged" or not known(run.lm):
        return run.tokens > STREAM_ABOVE
    return run.tokens * row_bytes(run) > STORE


def blocks_per_pass(context: int) -> int:
    """Blocks of one forward pass: attention scores grow with the square of the context."""
    return max(1, min(16, PASS // context))


def plain(run: Run) -> bool:
    """Whether a closed form trains it: the baseline, and every arm of the Gated SAE that has the step function."""
    return run.arch == "baseline" or (run.arch == "gated" and run.step)


def matrices(run: Run) -> int:
    return 3 if run.arch == "gated" and run.tie == "none" else 2


def parameters(run: Run) -> int:
    """Numbers in the SAE: encoder, dictionary, vectors."""
    n, vectors = width(run), 1 if run.arch == "baseline" else 3 if run.tie == "r_mag" else 2
    return matrices(run) * n * run.M + vectors * run.M + n


def held_bytes(run: Run) -> int:
    """Kept for one SAE all through training: fp32 weights, Adam's second moments (beta1 = 0: there is no first moment),
    the age and the silence of each latent.
    """
    return 8 * parameters(run) + 8 * run.M


def step_bytes(run: Run) -> int:
    """Most that one SAE's training step adds, with compiled element-wise parts; a stack steps one SAE at a time.

    In units of n M: two matrices and their gradients in bf16. In units of batch * M: pre-activation, codes, what comes
    back through the decoder, the gradient at the pre-activation, in bf16. By autograd, most of it in fp32.
    """
    nM, bM = width(run) * run.M, run.batch * run.M
    if not plain(run):
        return 10 * matrices(run) * nM + 44 * bM
    codes = 1 if run.arch == "baseline" else 2
    late = 6 if run.arch == "baseline" else 10  # what came back through the auxiliary decode is still there
    return max(4 * nM + (4 + 4 * codes) * bM, 8 * nM + late * bM) + 8 * run.batch * width(run)


def rows_at_once(M: int, most: int) -> int:
    """Tokens that an evaluation encodes at once."""
    return max(1, min(most, CODES // M))


def work_bytes(run: Run, count: int, lm: bool = True) -> int:
    """Most that a stack of `count` SAEs takes for a while: a training step and the harvest beside it; all of them as
    modules, once they are trained; or the evaluation of one, with five matrices of latents in fp32, the splices, and a
    pass of the language model. Without `lm`, the model works on another device.
    """
    weights, codes = 4 * parameters(run), 20 * min(CODES, 4096 * run.M)
    if not lm:
        return max(step_bytes(run), count * weights, weights + codes)
    evaluation = weights + splice_bytes(run) + max(codes, forward_bytes(run))
    return max(step_bytes(run) + forward_bytes(run, logits=False), count * weights, evaluation)


def state_bytes(run: Run, count: int) -> int:
    """Most that a stack on a GPU takes of the host's memory: its state on the way to a checkpoint, or, at the start,
    its dictionaries on the way to the GPU.
    """
    return max(count * held_bytes(run), 4 * width(run) * run.M * max(3, count + 2))


def step_flops(run: Run) -> int:
    """Operations of the matrix products of one training step: 14 n M a sample for gated, 10 n M for the baseline;
    4 n M more for an untied encoder, 2 n M for a live auxiliary dictionary, and, by autograd, 2 n M for each encoder,
    whose input has a gradient too (`b_dec`).
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
    """Operations of evaluation that all runs of a site share: held-out activations; clean, zero and mean ablation."""
    s = shape(run.lm)
    return run.eval_tokens * s.flops(run.context, run.site, run.layer) + run.ce_tokens * (
        s.flops(run.context) + 2 * above_flops(run)
    )


def above_flops(run: Run) -> int:
    """Operations per token from a site's block to the loss."""
    s = shape(run.lm)
    return s.flops(run.context) - (s.flops(run.context, "resid_post", run.layer - 1) if run.layer else 0)


def evaluation_flops(run: Run) -> int:
    """Operations of evaluating one SAE: encode and decode held-out text; the layers above on reconstructions."""
    clean = 0 if keeps_splices(run) else shape(run.lm).flops(run.context)
    return (run.eval_tokens + run.ce_tokens) * 4 * width(run) * run.M + run.ce_tokens * (clean + above_flops(run))


def lm_bytes(lm: str) -> int:
    """Weights, in bf16 (the small model that ships with the package: fp32)."""
    return shape(lm).parameters * (4 if lm == "gelu-1l-mini" else 2)


def forward_bytes(run: Run, logits: bool = True) -> int:
    """Most that one forward pass adds: attention scores (bf16 and their softmax in fp32), one block's activations, and
    the logits, whose loss is taken block by block in fp32. A harvest ends without `logits`.
    """
    s, blocks = shape(run.lm), blocks_per_pass(run.context)
    tokens = blocks * run.context
    scores = tokens * run.context * s.heads * 10
    inside = 2 * tokens * (8 * s.d + (2 + s.gated_mlp) * s.d_mlp)
    return max(scores, logits * (2 * tokens * s.vocab + 12 * run.context * s.vocab)) + inside


def clean_bytes(run: Run) -> int:
    """Clean activations of one token, which let an SAE's evaluation rerun the layers above alone."""
    return 2 * (width(run) + (0 if run.site == "resid_post" else shape(run.lm).d))


def keeps_splices(run: Run) -> bool:
    """Whether the clean activations of the text for cross-entropy stay for all SAEs of a site; else each makes them
    again, pass by pass, which at the paper's size adds 0.3 % of the operations.
    """
    return not known(run.lm) or run.ce_tokens * clean_bytes(run) <= KEPT


def splice_bytes(run: Run) -> int:
    tokens = run.ce_tokens if keeps_splices(run) else blocks_per_pass(run.context) * run.context
    return tokens * clean_bytes(run)


def held_out_bytes(run: Run) -> int:
    """Held-out activations, bf16, in the host's memory."""
    return 2 * run.eval_tokens * width(run)


def text_bytes(run: Run) -> int:
    """Token ids of hub text, on disk."""
    return 0 if run.text == "packaged" else 4 * run.tokens


def row_bytes(run: Run) -> int:
    return 2 * width(run)


def store_rows(run: Run) -> int:
    """Rows of a store: whole blocks that cover the run's tokens and one batch."""
    per_block = run.context - (not run.keep_pos0)
    return -(-(run.tokens + run.batch) // per_block) * per_block
