"""What the runner obeys: shapes of language models, and how much is read, encoded and kept at
once.
"""

from dataclasses import dataclass

from gsae.evidence.run import Run

# bytes; activations that take more are read from a shuffled buffer, others from a store on disk
STORE = 10_000_000_000

# tokens; the same on the packaged text, and where the width of the model is not known here
STREAM_ABOVE = 10_000_000

BUFFER = 1_000_000  # rows of that buffer, as in the paper

PASS = 8192  # tokens of one forward pass of the language model, at most 16 blocks

CODES = 2**26  # numbers in one matrix of latents that an evaluation makes: 0.27 GB in fp32

# bytes; clean activations that take more are not kept for the next SAE's evaluation
KEPT = 4_000_000_000


@dataclass(frozen=True)
class Shape:
    """The public shape of a language model, as its config gives it. Biases and norms (below 0.2 %)
    are left out.
    """

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
        special = {"attn_z": self.heads * self.d_head, "mlp_neurons": self.d_mlp}
        return special.get(site, self.d)

    @property
    def attention(self) -> int:
        """Weights of one block's query, key and value; the output matrix has `heads * d_head * d`
        more.
        """
        kv_heads = self.kv_heads or self.heads
        return self.d * self.d_head * (self.heads + 2 * kv_heads)

    @property
    def block(self) -> int:
        """Weights of one block."""
        output = self.heads * self.d_head * self.d
        mlp = (2 + self.gated_mlp) * self.d * self.d_mlp
        return self.attention + output + mlp

    @property
    def parameters(self) -> int:
        embeddings = (2 - self.tied) * self.vocab + self.positions
        return self.layers * self.block + self.d * embeddings

    def flops(self, context: int, site: str | None = None, layer: int = 0) -> int:
        """Operations per token of a forward pass that ends at a site; without one, of the whole
        pass.
        """
        # scores and their product with the values, not only causal ones
        mix = 4 * context * self.heads * self.d_head
        whole_block = 2 * self.block + mix
        if site is None:
            return self.layers * whole_block + 2 * self.d * self.vocab
        # attn_z comes before the output matrix and the MLP of its block
        last_block = (2 * self.attention if site == "attn_z" else 2 * self.block) + mix
        return layer * whole_block + last_block


# of the models' public configs
SHAPES = {
    # layers, d, heads, d_head, d_mlp, vocab
    "gelu-1l-mini": Shape( 1,  128,  4,  32,   512,   4096, positions=128),
    "smollm2":      Shape(30,  576,  9,  64,  1536,  49152, kv_heads=3, gated_mlp=True, tied=True),
    "gelu-1l":      Shape( 1,  512,  8,  64,  2048,  48262, positions=1024),
    "pythia-2.8b":  Shape(32, 2560, 32,  80, 10240,  50304),
    "gemma-7b":     Shape(28, 3072, 16, 256, 24576, 256000, gated_mlp=True, tied=True),
}  # fmt: skip


def model_name(lm: str) -> str:
    """A language model's name without its revision."""
    return lm.partition("@")[0]


def known(lm: str) -> bool:
    return model_name(lm) in SHAPES


def shape(lm: str) -> Shape:
    """A language model's shape, at any revision. Raises KeyError, naming those known, for one not
    in the table.
    """
    if not known(lm):
        raise KeyError(
            f"the shape of {lm!r} is not known: add it to gsae.experiments.limits.SHAPES; "
            f"known are {', '.join(SHAPES)}"
        )
    return SHAPES[model_name(lm)]


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


def rows_at_once(M: int, most: int) -> int:
    """Tokens that an evaluation encodes at once."""
    return max(1, min(most, CODES // M))


def clean_bytes(run: Run) -> int:
    """Clean activations of one token, which let an SAE's evaluation rerun the layers above
    alone.
    """
    # the residual stream beside the site, where the site is not itself the residual stream
    residual = 0 if run.site == "resid_post" else shape(run.lm).d
    return 2 * (width(run) + residual)


def keeps_splices(run: Run) -> bool:
    """Whether the clean activations of the text for cross-entropy stay for all SAEs of a site; else
    each makes them again, pass by pass, which at the paper's size adds 0.3 % of the operations.
    """
    return not known(run.lm) or run.ce_tokens * clean_bytes(run) <= KEPT


def row_bytes(run: Run) -> int:
    """Of one token's activations, bf16."""
    return 2 * width(run)


def store_rows(run: Run) -> int:
    """Rows of a store: whole blocks that cover the run's tokens and one batch."""
    rows_per_block = run.context - (not run.keep_pos0)
    blocks = -(-(run.tokens + run.batch) // rows_per_block)
    return blocks * rows_per_block
