"""Where a step's processor time goes, by torch's profiler: products, Adam, what is done to each
entry, gathering.
"""

import torch
from torch import _inductor
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import Case
from benchmarks.ours import Ours

STEPS = 3
# The first whose words are in an operation's name; compiled kernels are named after what is fused
# in them.
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn"),
    "Adam": ("sqrt",),
    "gathering": ("embedding_bag", "index", "nonzero", "sort", "searchsorted", "aten::gt"),
    "element-wise": ("fused", "aten::"),
}


def part(name: str) -> str:
    return next(
        (part for part, words in PARTS.items() if any(word in name for word in words)), "rest"
    )


def shares(case: Case, rows: torch.Tensor, settle: int = 3) -> dict:
    """One row: the share of each part in the processor time of one case's step on a CPU."""
    # compiled without names of their own, kernels would count as the call of their graph
    torch._dynamo.reset()
    with _inductor.config.patch({"cpp.enable_kernel_profile": True}):
        ours = Ours(case, rows, 0.1, settle)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(STEPS):
                ours.step()
    spent = dict.fromkeys((*PARTS, "rest"), 0.0)
    for event in profiled.key_averages():
        spent[part(event.key)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {
        "kind": "profile",
        "name": case.name,
        **vars(case),
        "shares": {k: round(v / total, 4) for k, v in spent.items()},
    }
