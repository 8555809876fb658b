"""One pass over text for many latents: their examples, densities and histograms. Memory does not
grow with the text.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

BINS = 48


@torch.no_grad()
def scan(
    blocks: Int[Tensor, "N T"],
    read: Callable[[Tensor], Tensor],
    tokenizer,
    *,
    top: int = 10,
    sample: int = 100,
    background: int = 1000,
    before: int = 16,
    after: int = 8,
    batch: int = 16,
    seed: int = 0,
) -> tuple[list[dict], list[dict]]:
    """Examples, density and histogram of K latents, and windows of the text drawn without looking
    at any latent.

    Args:
        blocks: token blocks. Position 0 is left out of everything, as in training.
        read: `(B, T) tokens -> (B, T - 1, K)` activations from position 1 on, at least 0.
        top: strongest examples kept, one a block.
        sample: random examples kept of the latent's peaks: tokens where it is on and highest in the
            window around.
        background: windows of the text in all.
        before, after: tokens shown on each side of an example's own.

    Returns:
        A dict a latent: `density, max, histogram, top, sample` (by falling activation, `q` their
        quantile) and `background`, the numbers of the windows where it is on `at` the window's
        token or `near` it. Then the windows.

    Raises:
        ValueError: on activations below 0 or not finite.
    """
    N, T = blocks.shape
    tokens = N * (T - 1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(tokens, generator=generator)[:background].sort().values
    drawn = positions(drawn, T - 1)
    kept = None
    for first in tqdm(range(0, N, batch), desc="collect examples", unit="batch", disable=None):
        f = checked(read(blocks[first : first + batch])).permute(2, 0, 1)
        if kept is None:  # K is known from the first batch on
            kept = Kept(len(f), top, sample, drawn, before, after)
        kept.add(f, first, generator)
    text = Text(blocks, tokenizer, before, after)
    latents = [described(kept, k, text, tokens) for k in range(kept.K)]
    return latents, [text.window(*place) for place in drawn.tolist()]


def positions(index: Int[Tensor, " C"], length: int) -> Int[Tensor, "C 2"]:
    """(block, position) of tokens that are numbered through blocks of one length."""
    return torch.stack([index // length, index % length], 1)


def checked(f: Tensor) -> Tensor:
    """Activations on the CPU. Raises ValueError on those below 0 or not finite."""
    f = f.float().cpu()
    lowest, highest = float(f.min()), float(f.max())
    if not (lowest >= 0 and highest < math.inf):  # also where they are NaN
        wrong = highest if lowest >= 0 else lowest
        raise ValueError(f"activations of latents must be finite and at least 0, got {wrong}")
    return f


class Kept:
    """What the pass over the text keeps of K latents: it has one size, however long the text is."""

    def __init__(
        self,
        K: int,
        top: int,
        sample: int,
        drawn: Int[Tensor, "windows 2"],
        before: int,
        after: int,
    ):
        self.K, self.before, self.after = K, before, after
        self.width = before + 1 + after  # tokens of a window
        self.strongest = Best(K, top, self.width)
        self.peaks = Best(K, sample, self.width)
        self.histogram = Histogram(K)
        self.drawn = drawn
        self.on_at = torch.zeros(K, len(drawn), dtype=torch.bool)
        self.on_near = torch.zeros(K, len(drawn), dtype=torch.bool)

    def add(self, f: Float[Tensor, "K B t"], first: int, generator: torch.Generator) -> None:
        """Take in a batch of blocks, the first of which is number `first` of the text."""
        padded = F.pad(f, (self.before, self.after))
        windows = padded.unfold(-1, self.width, 1)  # a view: (K, B, t, width)
        self.add_strongest(f, windows, first)
        self.add_peaks(f, padded, windows, first, generator)
        self.histogram.add(f.flatten(1))
        self.add_background(windows, first)

    def add_strongest(self, f: Float[Tensor, "K B t"], windows: Tensor, first: int) -> None:
        """Offer the highest token of each block: two of one text would show the same twice."""
        K, B, _ = f.shape
        highest, position = f.max(-1)
        key = torch.where(highest > 0, highest, -1.0)
        where = torch.stack([torch.arange(B).expand(K, B), position], -1)
        self.strongest.offer(key, where, windows, first)

    def add_peaks(
        self,
        f: Float[Tensor, "K B t"],
        padded: Tensor,
        windows: Tensor,
        first: int,
        generator: torch.Generator,
    ) -> None:
        """Offer every peak under a random key: the highest keys are a uniform sample of all."""
        K, B, length = f.shape
        peak = (f > 0) & (f == F.max_pool1d(padded, self.width, 1))
        key = torch.where(peak, torch.rand(f.shape, generator=generator), -1.0).flatten(1)
        where = positions(torch.arange(B * length), length).expand(K, -1, 2)
        self.peaks.offer(key, where, windows, first)

    def add_background(self, windows: Float[Tensor, "K B t width"], first: int) -> None:
        """Note at which of the drawn windows of this batch each latent is on."""
        block, position = self.drawn.unbind(1)
        in_batch = (block >= first) & (block < first + windows.shape[1])
        numbers = in_batch.nonzero()[:, 0]
        on = windows[:, block[numbers] - first, position[numbers]] > 0
        on_at = on[..., self.before]
        self.on_at[:, numbers] = on_at
        self.on_near[:, numbers] = on.sum(-1) > on_at  # at another token of the window, too


class Best:
    """The `size` windows with the highest key for each of K latents, over a stream."""

    def __init__(self, K: int, size: int, width: int):
        self.key = torch.full((K, size), -1.0)  # keys are at least 0: -1 marks an empty place
        self.where = torch.zeros(K, size, 2, dtype=torch.long)  # block, position in f
        self.acts = torch.zeros(K, size, width)

    def offer(
        self, key: Float[Tensor, "K C"], where: Int[Tensor, "K C 2"], windows: Tensor, first: int
    ) -> None:
        """Candidates: their keys, their (block of this batch, position), and `windows[k, block,
        position]`.
        """
        size = self.key.shape[1]
        key, best = key.topk(min(size, key.shape[1]))
        where = where.gather(1, best[..., None].expand(-1, -1, 2))
        # Those kept so far come first, candidates after them: a number from `size` on is a new one.
        self.key, chosen = torch.cat([self.key, key], 1).topk(size)
        in_text = where + torch.tensor([first, 0])
        both = torch.cat([self.where, in_text], 1)
        self.where = both.gather(1, chosen[..., None].expand(-1, -1, 2))
        kept = chosen.clamp(max=size - 1)  # of new ones any row: they are overwritten below
        self.acts = self.acts.gather(1, kept[..., None].expand_as(self.acts))
        # Windows are copied of those alone that stay: all candidates' would not fit in memory.
        k, place = (chosen >= size).nonzero(as_tuple=True)
        block, position = where[k, chosen[k, place] - size].unbind(-1)
        self.acts[k, place] = windows[k, block, position]


class Histogram:
    """Counts of the activations above 0 in equal bins from 0, whose width doubles when an
    activation is beyond.
    """

    def __init__(self, K: int):
        self.width = torch.zeros(K, dtype=torch.float64)
        self.counts = torch.zeros(K, BINS, dtype=torch.long)

    def add(self, f: Float[Tensor, "K C"]) -> None:
        highest = f.amax(1).double() * 1.0001  # strictly inside the last bin
        self.width = torch.where(self.width == 0, highest / BINS, self.width)
        self.widen(highest)
        k, c = f.nonzero(as_tuple=True)
        bins = (f[k, c].double() / self.width[k]).long().clamp(max=BINS - 1)
        counts = torch.bincount(k * BINS + bins, minlength=self.counts.numel())
        self.counts += counts.view_as(self.counts)

    def widen(self, highest: Float[Tensor, " K"]) -> None:
        """Double the width of a latent's bins until they reach its highest activation."""
        while True:
            beyond = highest > self.width * BINS
            if not beyond.any():
                return
            half = self.counts[beyond].view(-1, BINS // 2, 2).sum(-1)
            self.counts[beyond] = torch.cat([half, torch.zeros_like(half)], 1)
            self.width[beyond] *= 2


class Text:
    """The blocks as text: windows around a token."""

    def __init__(self, blocks: Int[Tensor, "N T"], tokenizer, before: int, after: int):
        self.blocks, self.before, self.after = blocks, before, after
        self.pieces = Pieces(tokenizer)

    def window(self, block: int, position: int) -> dict:
        """The window around a position in f, which is one less than the position in the block."""
        pos = position + 1
        start = max(1, pos - self.before)  # position 0 is left out
        stop = min(self.blocks.shape[1], pos + 1 + self.after)
        tokens = [self.pieces[int(i)] for i in self.blocks[block, start:stop]]
        return {"block": block, "pos": pos, "at": pos - start, "tokens": tokens}

    def examples(self, best: Best, k: int) -> list[dict]:
        """Windows of latent k with their activations, by falling activation of their own token."""
        filled = best.key[k] >= 0
        places, windows = best.where[k][filled].tolist(), best.acts[k][filled].tolist()
        rows = []
        for (block, position), acts in zip(places, windows, strict=True):
            row = self.window(block, position)
            skip = self.before - row["at"]  # what the window lacks at the start of a block
            row["acts"] = [short(act) for act in acts[skip : skip + len(row["tokens"])]]
            rows.append(row)
        return sorted(rows, key=lambda row: (-height(row), row["block"], row["pos"]))


class Pieces(dict):
    """Token id -> its text; a leading space is kept where the tokenizer's `decode` drops it."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __missing__(self, i: int) -> str:
        text, raw = self.tokenizer.decode([i]), self.tokenizer.convert_ids_to_tokens(i)
        dropped = raw and raw.startswith("▁") and not text.startswith(" ")
        self[i] = " " + text if dropped else text
        return self[i]


def height(example: dict) -> float | int:
    """The activation at an example's own token."""
    return example["acts"][example["at"]]


def described(kept: Kept, k: int, text: Text, tokens: int) -> dict:
    """Latent k as plain data, as `scan` returns it, from a text of so many tokens."""
    top, sample = text.examples(kept.strongest, k), text.examples(kept.peaks, k)
    for i, row in enumerate(sample):
        row["q"] = round(1 - i / max(len(sample) - 1, 1), 3)
    counts = kept.histogram.counts[k].tolist()
    while counts and counts[-1] == 0:
        counts.pop()
    return {
        "density": short(sum(counts) / tokens, 6),
        "max": height(top[0]) if top else 0,
        "histogram": {"width": short(float(kept.histogram.width[k]), 6), "counts": counts},
        "top": top,
        "sample": sample,
        "background": {
            "at": kept.on_at[k].nonzero()[:, 0].tolist(),
            "near": kept.on_near[k].nonzero()[:, 0].tolist(),
        },
    }


def short(value: float, digits: int = 3) -> float | int:
    """A number rounded to significant digits, an integer where it is one: short in json."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) else rounded
