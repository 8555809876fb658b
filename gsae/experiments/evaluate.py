"""What is measured of an SAE at its site: reconstruction, sparsity and density on held-out
activations, and cross-entropy with its reconstructions, or those of a pursuit, in place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from gsae.evidence.metrics import ratios
from gsae.evidence.sums import GROUPS, Sums
from gsae.experiments import limits
from gsae.experiments.site import Site
from gsae.lm.rows import check_finite
from gsae.saes import SAE, gradient_pursuit

# Tokens encoded at once: on a CPU their codes stay in its cache, twice as fast.
ROWS = {"cpu": 512, "cuda": 4096}


@dataclass
class Evaluation:
    """The evaluation that all SAEs of a site share: its text, activations and references, each made
    when it is first needed.

    They are large, and kept until the evaluation itself is let go: make one a site.
    """

    site: Site

    def tokens(self, count: int) -> Tensor:
        """Token ids of the first blocks of evaluation text, `(count, context)`."""
        blocks = self.site.blocks("eval", count).with_format("torch")
        return torch.as_tensor(blocks["tokens"][:]).long()

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Scaled activations of the evaluation blocks, `(blocks, positions, n)` in bfloat16, and
        each block's group.

        Raises ValueError, naming the block, on an activation that is NaN or infinite.
        """
        run = self.site.run
        tokens = self.tokens(-(-run.eval_tokens // self.site.positions))
        passes = tokens.split(limits.blocks_per_pass(run.context))
        kept, start = None, 0
        for part in tqdm(passes, desc=f"evaluation text, {run.site} {run.layer}", disable=None):
            x = self.activations(part, start)
            if kept is None:  # in its place at once: joining parts would take the memory twice
                kept = torch.empty(len(tokens), *x.shape[1:], dtype=torch.bfloat16)
            stop = start + len(x)
            kept[start:stop] = (x.float() * self.site.store.scale).bfloat16()
            start = stop
        return kept, torch.arange(len(tokens)) % GROUPS

    def activations(self, tokens: Tensor, first_block: int) -> Tensor:
        """Activations of a part of the evaluation text, `(blocks, positions, n)`; it begins with
        block `first_block`.
        """
        run, key = self.site.run, self.site.key
        first_position = 0 if run.keep_pos0 else 1
        x = self.site.model.activations(tokens, [key])[key][:, first_position:]
        check_finite(
            x,
            first_block,
            lm=run.lm,
            site=run.site,
            layer=run.layer,
            text="evaluation text",
        )
        return x

    @cached_property
    def splices(self) -> "Splices | list":
        """The text for cross-entropy, pass by pass, with the site's activations to replace."""
        run = self.site.run
        tokens = self.tokens(-(-run.ce_tokens // run.context))
        splices = Splices(self.site, tokens.split(limits.blocks_per_pass(run.context)))
        return list(splices) if limits.keeps_splices(run) else splices

    @cached_property
    def references(self) -> dict[str, list[Tensor]]:
        """Cross-entropy per block, a tensor a splice: clean, zero-ablated and mean-ablated
        (position 0 keeps its activation).
        """
        mean = self.site.store.mean / self.site.store.scale
        references: dict[str, list[Tensor]] = {"clean": [], "zero": [], "mean": []}
        for splice in tqdm(self.splices, desc="clean, zero and mean ablation", disable=None):
            clean = splice.clean
            references["clean"].append(splice.ce(None))
            references["zero"].append(splice.ce(torch.zeros_like(clean)))
            references["mean"].append(splice.ce(mean.to(clean).expand_as(clean)))
        return references

    def spliced(self, bar: str = "") -> Iterator[tuple]:
        """Each splice, the group of each of its blocks, and its cross-entropies of reference; with
        a progress bar of that name.
        """
        references, start = self.references, 0
        splices = tqdm(self.splices, desc=bar, leave=False, disable=None if bar else True)
        for i, splice in enumerate(splices):
            stop = start + len(splice.clean)
            groups = torch.arange(start, stop) % GROUPS
            yield splice, groups, {name: values[i] for name, values in references.items()}
            start = stop

    def rows_at_once(self, sae: torch.nn.Module) -> int:
        M = getattr(sae, "sae", sae).M
        return limits.rows_at_once(M, ROWS.get(sae.b_dec.device.type, 4096))

    @torch.no_grad()
    def reconstruct(self, sae: torch.nn.Module) -> Sums:
        """The sums behind an SAE's metrics of reconstruction, over the evaluation activations; no
        cross-entropy.
        """
        sae = sae.eval()
        sums = Sums(self.site.store.mean)
        data, groups = self.held_out
        positions = data.shape[1]
        blocks = max(1, self.rows_at_once(sae) // positions)
        for x, group in zip(data.split(blocks), groups.split(blocks), strict=True):
            rows = x.flatten(0, 1).float().to(sae.b_dec.device)
            f = sae.encode(rows)
            sums.add(rows, sae.decode(f), f, group.repeat_interleave(positions))
        return sums

    @torch.no_grad()
    def evaluate(self, sae: torch.nn.Module) -> tuple[dict, dict, dict]:
        """Metrics, the sums behind them per group, and the density histogram of an SAE, or of what
        encodes like one.
        """
        sums = self.reconstruct(sae)
        scale, most = self.site.store.scale, self.rows_at_once(sae)
        for splice, group, references in self.spliced():
            clean = splice.clean
            rows = (clean.float() * scale).to(sae.b_dec.device).flatten(0, 1)
            x_hat = torch.cat([sae(part) for part in rows.split(most)]).view(clean.shape)
            replaced = (x_hat.to(clean.device) / scale).to(clean.dtype)
            sums.add_ce(group, **references, sae=splice.ce(replaced), tokens=splice.targets)
        kept = sums.to_dict()
        metrics = {**ratios(kept), "dead_fraction": float(sums.dead_fraction)}
        return metrics, kept, sums.density()

    @torch.no_grad()
    def pursue(self, sae: SAE, sizes: Sequence[int]) -> dict[int, tuple[dict, dict]]:
        """Metrics and sums of pursuit at several sizes, and, under 0, of the SAE's own encoder, on
        the same tokens.

        One pass over the text of the cross-entropy: pursuit is some hundred times the cost of an
        encoder, so that it sees `ce_tokens` tokens and not the run's whole evaluation set, and its
        numbers have to be compared with those of 0.
        """
        scale = self.site.store.scale
        first_position = 0 if self.site.run.keep_pos0 else 1
        sums = {size: Sums(self.site.store.mean) for size in (0, *sizes)}
        for splice, group, references in self.spliced(bar="pursuit"):
            x = (splice.clean[:, first_position:].float() * scale).to(sae.b_dec.device)
            rows = x.flatten(0, 1)
            pursued = gradient_pursuit.pursue_all(rows, sae.W_dec, sae.b_dec, sizes)
            for size, f in zip((0, *sizes), (sae.encode(rows), *pursued), strict=True):
                x_hat = sae.decode(f)
                sums[size].add(rows, x_hat, f, group.repeat_interleave(x.shape[1]))
                replaced = splice.clean.clone()
                replaced[:, first_position:] = (x_hat.reshape(x.shape) / scale).to(replaced)
                ce = splice.ce(replaced)
                sums[size].add_ce(group, **references, sae=ce, tokens=splice.targets)
        measured = {}
        for size, total in sums.items():
            kept = total.to_dict()
            measured[size] = ratios(kept) | {"dead_fraction": total.dead_fraction}, kept
        return measured


@dataclass
class Splices:
    """The splices of a site, made anew each time they are gone through: at the paper's size too
    large to keep.
    """

    site: Site
    parts: tuple[Tensor, ...]  # of the text: token ids, (blocks, context)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator:
        for tokens in self.parts:
            yield self.site.model.splice(tokens, *self.site.key, keep_pos0=self.site.run.keep_pos0)
