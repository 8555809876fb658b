"""What is measured: training cases, their count of useful work, and how one timed round is taken.
torch only, because the peers' environment, which has no gsae, reads this file too."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# The dense products that a step cannot do without, each of 2 n M operations a sample, and how often
# it needs them. Gated: main and auxiliary decode share shapes, as do the two ways back; the
# auxiliary path gives the frozen dictionary no gradient.
PRODUCTS = {
    "x @ W_enc": {"gated": 1, "baseline": 1},
    "f @ W_dec": {"gated": 2, "baseline": 1},
    "e @ W_dec.T": {"gated": 2, "baseline": 1},
    "f.T @ e": {"gated": 1, "baseline": 1},
    "x.T @ h": {"gated": 1, "baseline": 1},
}


def flops(arch: str, n: int, M: int) -> int:
    """Useful floating-point operations of one sample in one training step: 14 n M for gated, 10 n M
    for baseline.
    """
    return sum(count[arch] for count in PRODUCTS.values()) * 2 * n * M


@dataclass(frozen=True)
class Case:
    """Training `K` SAEs of one shape on the same batches, by one library in one setting."""

    library: str
    setting: str
    arch: str
    K: int
    n: int
    M: int
    batch: int

    @property
    def name(self) -> str:
        return (
            f"{self.library} [{self.setting}] {self.arch} x{self.K} n{self.n} M{self.M} "
            f"b{self.batch}"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.n, self.M, self.batch


def clock(step: Callable[[], object], count: int, device: str = "cpu") -> float:
    """Seconds of `count` calls, without what was queued before them."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return time.perf_counter() - began


def many_shapes() -> None:
    """Let one function be compiled for each of the benchmark's shapes: past 8, torch would go on
    uncompiled.
    """
    from torch._dynamo import config

    config.recompile_limit = config.accumulated_recompile_limit = 4096


class Loop:
    """A step that is timed in rounds of about `seconds`; the first calls compile and settle and are
    not timed.

    Each round begins with one step outside the clock: it wakes the threads and fills the caches
    that the case measured before this one has used.
    """

    def __init__(
        self, step: Callable[[], object], seconds: float, settle: int = 3, device: str = "cpu"
    ):
        self.step, self.device = step, device
        clock(step, settle, device)
        once = min(clock(step, 1, device) for _ in range(2))
        self.count = max(1, round(seconds / max(once, 1e-6)))

    def round(self) -> float:
        """Seconds a step."""
        self.step()
        return clock(self.step, self.count, self.device) / self.count


class Batches:
    """Preloaded batches, handed out in turn: `Batches(rows, batch)()` is `(batch, n)` float32."""

    def __init__(self, rows: torch.Tensor, batch: int, device: str = "cpu"):
        self.batches, self.next = rows.to(device).split(batch), 0

    def __call__(self) -> torch.Tensor:
        x = self.batches[self.next % len(self.batches)]
        self.next += 1
        return x


def write_data(path: Path, widths: set[int], rows: int) -> None:
    """The activations that every library trains on: sparse sums of known directions, unit mean
    squared norm.
    """
    from gsae.saes.toy import SparseData  # not in the peers' environment

    tensors = {}
    for n in sorted(widths):
        data = SparseData(n, features=8 * n, l0=float(min(32, n)), noise=0.1)
        parts = [
            data.sample(min(4096, rows - start), seed)[0]
            for seed, start in enumerate(range(0, rows, 4096))
        ]
        tensors[str(n)] = torch.cat(parts)
    save_file(tensors, path)


def read_data(path: Path) -> dict[int, torch.Tensor]:
    return {int(n): x for n, x in load_file(path).items()}
