"""GPUs that are known by name, and what a planner assumes of them."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """GB of memory, dense bf16 TFLOP/s, and a price per hour, for which any rental or cluster has
    its own.
    """

    memory: int | float
    tflops: int | float
    price: int | float


DATED = "2026-11"


# ASSUMPTIONS as of DATED: memory and rate as in the vendors' data sheets, price a round on-demand
# figure in US $
GPUS = {
    #      memory, tflops, price
    "t4":   GPU(16,   8.1, 0.35),  # has no bf16 units: its fp32 rate
    "l4":   GPU(24,   121, 0.7),
    "a100": GPU(80,   312, 1.6),
    "h100": GPU(80,   989, 2.5),
    "h200": GPU(141,  989, 3.5),
    "b200": GPU(180, 2250, 5.0),
}  # fmt: skip


UTILISATION = 0.4  # ASSUMPTION: share of that rate which training and forward passes reach


NODE = 8  # GPUs of one machine


def named(card: str) -> str | None:
    """The key in `GPUS` of a card, from its driver's name for it: "NVIDIA A100-SXM4-80GB" is an
    a100.
    """
    words = re.split(r"\W+", card.lower())
    return next((word for word in words if word in GPUS), None)
