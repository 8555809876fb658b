"""One pass over text for many latents: their examples, densities and histograms. Memory does not
grow with the text.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

BINS = 48


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
        self.key, kept = torch.cat([self.key, key], 1).topk(size)
        fresh = where + torch.tensor([first, 0])
        self.where = torch.cat([self.where, fresh], 1).gather(1, kept[..., None].expand(-1, -1, 2))
        self.acts = self.acts.gather(1, kept.clamp(max=size - 1)[..., None].expand_as(self.acts))
        k, place = (kept >= size).nonzero(as_tuple=True)
        block, position = where[k, kept[k, place] - size].unbind(-1)
        self.acts[k, place] = windows[k, block, position]


class Histogram:
    """Counts of the activations above 0 in equal bins from 0, whose width doubles when an
    activation is beyond.
    """

    def __init__(self, K: int):
        self.width, self.counts = (
            torch.zeros(K, dtype=torch.float64),
            torch.zeros(K, BINS, dtype=torch.long),
        )

    def add(self, f: Float[Tensor, "K C"]) -> None:
        highest = f.amax(1).double() * 1.0001  # strictly inside the last bin
        self.width = torch.where(self.width == 0, highest / BINS, self.width)
        while (wide := highest > self.width * BINS).any():
            half = self.counts[wide].view(-1, BINS // 2, 2).sum(-1)
            self.counts[wide] = torch.cat([half, torch.zeros_like(half)], 1)
            self.width[wide] *= 2
        k, c = f.nonzero(as_tuple=True)
        bins = (f[k, c].double() / self.width[k]).long().clamp(max=BINS - 1)
        self.counts += torch.bincount(k * BINS + bins, minlength=self.counts.numel()).view_as(
            self.counts
        )


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
            quantile) and
        `background`, the numbers of the windows where it is on `at` the window's token or `near`
        it. Then the windows.

    Raises:
        ValueError: on activations below 0 or not finite.
    """
    N, T = blocks.shape
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(N * (T - 1), generator=generator)[:background].sort().values
    drawn = torch.stack([drawn // (T - 1), drawn % (T - 1)], 1)
    best = None
    for first in tqdm(range(0, N, batch), desc="collect examples", unit="batch", disable=None):
        f = read(blocks[first : first + batch]).permute(2, 0, 1).float().cpu()  # (K, B, T - 1)
        if not f.min() >= 0:
            raise ValueError(
                f"activations of latents must be finite and at least 0, got {float(f.min())}"
            )
        K, B, _ = f.shape
        if best is None:
            width = before + 1 + after
            best, some, hist = Best(K, top, width), Best(K, sample, width), Histogram(K)
            at, near = torch.zeros(2, K, len(drawn), dtype=torch.bool)
        padded = F.pad(f, (before, after))
        windows = padded.unfold(-1, width, 1)
        highest, position = f.max(-1)
        where = torch.stack([torch.arange(B).expand(K, B), position], -1)
        best.offer(torch.where(highest > 0, highest, -1.0), where, windows, first)
        peak = (f > 0) & (f == F.max_pool1d(padded, width, 1))
        key = torch.where(peak, torch.rand(f.shape, generator=generator), -1.0).flatten(1)
        index = torch.arange(B * (T - 1))
        where = torch.stack([index // (T - 1), index % (T - 1)], -1).expand(K, -1, 2)
        some.offer(key, where, windows, first)
        hist.add(f.flatten(1))
        here = ((drawn[:, 0] >= first) & (drawn[:, 0] < first + B)).nonzero()[:, 0]
        on = windows[:, drawn[here, 0] - first, drawn[here, 1]] > 0
        at[:, here], near[:, here] = on[..., before], on.sum(-1) > on[..., before]

    pieces = Pieces(tokenizer)

    def window(block: int, position: int) -> dict:
        start, stop = (
            max(1, position + 1 - before),
            min(T, position + 2 + after),
        )  # block positions; 0 is left out
        tokens = [pieces[int(i)] for i in blocks[block, start:stop]]
        return {"block": block, "pos": position + 1, "at": position + 1 - start, "tokens": tokens}

    def examples(kept: Best, k: int) -> list[dict]:
        found = []
        for (block, position), acts in zip(
            kept.where[k][kept.key[k] >= 0].tolist(), kept.acts[k], strict=False
        ):
            shown = window(block, position)
            skip = before - shown["at"]
            shown["acts"] = [plain(a) for a in acts[skip : skip + len(shown["tokens"])].tolist()]
            found.append(shown)
        return sorted(found, key=lambda e: (-e["acts"][e["at"]], e["block"], e["pos"]))

    latents = []
    for k in range(K):
        counts = hist.counts[k].tolist()
        while counts and counts[-1] == 0:
            counts.pop()
        rows = examples(some, k)
        for i, row in enumerate(rows):
            row["q"] = round(1 - i / max(len(rows) - 1, 1), 3)
        tops = examples(best, k)
        latents.append(
            {
                "density": plain(sum(counts) / (N * (T - 1)), 6),
                "max": tops[0]["acts"][tops[0]["at"]] if tops else 0,
                "histogram": {"width": plain(float(hist.width[k]), 6), "counts": counts},
                "top": tops,
                "sample": rows,
                "background": {
                    "at": at[k].nonzero()[:, 0].tolist(),
                    "near": near[k].nonzero()[:, 0].tolist(),
                },
            }
        )
    return latents, [window(*place) for place in drawn.tolist()]


class Pieces(dict):
    """Token id -> its text; a leading space is kept where the tokenizer's `decode` drops it."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __missing__(self, i: int) -> str:
        text, raw = self.tokenizer.decode([i]), self.tokenizer.convert_ids_to_tokens(i)
        self[i] = " " + text if raw and raw.startswith("▁") and not text.startswith(" ") else text
        return self[i]


def plain(value: float, digits: int = 3) -> float | int:
    """A number rounded to significant digits, an integer where it is one: short in json."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) else rounded
