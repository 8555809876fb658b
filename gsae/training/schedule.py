"""What a stack trains and when: its settings, and the schedules of lambda, of the rate and of
resampling.
"""

import math
from dataclasses import dataclass

from gsae.saes import ARCHITECTURES, SAE


@dataclass(frozen=True)
class Plan:
    """What a stack trains: its architecture, one lambda a run, and the schedules, all over `steps`
    steps.
    """

    arch: str
    n: int
    M: int
    lams: tuple[float, ...]
    steps: int
    batch: int
    lr: float
    seed: int = 0
    switches: tuple[tuple[str, object], ...] = ()
    lam_warmup: float = 0.05
    lr_warmup: int = 1000
    lr_decay: float = 0.2
    resample: tuple[float, ...] = (0.15, 0.30)
    names: tuple[str, ...] = ()  # run ids, for messages and checkpoints
    dtype: str = "bfloat16"  # of the products; the weights, targets and sums are float32 (D10)
    device: str = "cpu"

    @property
    def events(self) -> list[int]:
        return [round(share * self.steps) for share in self.resample]

    @property
    def window(self) -> int:
        """Steps of silence that make a latent dead: half the interval between resamplings (Bricken
        et al.).
        """
        first = self.events[0] if self.events else round(0.15 * self.steps)
        return max(1, first // 2)

    def lam_share(self, step: int) -> float:
        """Share of its full lambda that a run has at `step`: linear warm-up (D5)."""
        return min(1.0, (step + 1) / max(1, round(self.lam_warmup * self.steps)))

    def lr_at(self, step: int) -> float:
        """Learning rate: cosine from 0.1x to 1x at the start and after resampling (D7), linear to 0
        at the end (D6).
        """
        warm = min(self.lr_warmup, self.steps // 50)
        since = step - max([e for e in self.events if e <= step], default=0)
        rise = 0.1 + 0.45 * (1 - math.cos(math.pi * since / warm)) if since < warm else 1.0
        decay = round(self.lr_decay * self.steps)
        return self.lr * rise * min(1.0, (self.steps - step) / decay if decay else 1.0)

    def sae(self) -> SAE:
        return ARCHITECTURES[self.arch](self.n, self.M, self.seed, **dict(self.switches))
