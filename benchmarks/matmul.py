"""The roofline: how fast this machine multiplies matrices of the training products' own shapes and
layouts.
"""

import torch

from benchmarks.cases import PRODUCTS, Loop

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Machine:
    """The five products of one shape in one dtype; a round gives seconds a call for each of
    them.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: str, seconds: float, device: str = "cpu"
    ):
        self.n, self.M, self.batch = self.shape = shape
        self.dtype = dtype
        steps = products(*shape, DTYPES[dtype], device)
        self.loops = {
            name: Loop(step, seconds / len(steps), device=device) for name, step in steps.items()
        }

    @property
    def name(self) -> str:
        return f"machine [{self.dtype}] products n{self.n} M{self.M} b{self.batch}"

    def round(self) -> dict[str, float]:
        return {name: loop.round() for name, loop in self.loops.items()}


def products(n: int, M: int, batch: int, dtype: torch.dtype, device: str = "cpu") -> dict:
    """One call for each entry of `PRODUCTS`, on contiguous operands, transposed where training
    transposes them.
    """
    x, e = torch.randn(2, batch, n, device=device, dtype=dtype)
    f, h = torch.randn(2, batch, M, device=device, dtype=dtype)
    W_enc, W_dec = (
        torch.randn(n, M, device=device, dtype=dtype),
        torch.randn(M, n, device=device, dtype=dtype),
    )
    calls = [
        lambda: x @ W_enc,
        lambda: f @ W_dec,
        lambda: e @ W_dec.T,
        lambda: f.T @ e,
        lambda: x.T @ h,
    ]
    return dict(zip(PRODUCTS, calls, strict=True))


def rate(arch: str, shape: tuple[int, int, int], seconds: dict[str, float]) -> float:
    """FLOP/s of one step's products done one after the other, each at its measured speed."""
    n, M, batch = shape
    counts = {name: count[arch] for name, count in PRODUCTS.items()}
    return (
        2
        * n
        * M
        * batch
        * sum(counts.values())
        / sum(counts[name] * seconds[name] for name in counts)
    )
