"""What this machine computes on: processor or GPU, the dtype of its products, its compiler and its
memory.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache

import torch


def training_device() -> str:
    """Where SAEs are trained and evaluated: "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, by oneDNN; without it no product in it is
    fast.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product_dtype(device: str) -> str:
    """The dtype in which a device multiplies: float32 on GPUs without bf16 units, compute
    capability below 8.0, and on processors without AVX-512 or the like, where a product in bf16
    takes up to forty times as long.
    """
    if device.startswith("cuda"):
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = not device.startswith("cpu") or has_bfloat16()
    return "bfloat16" if fast else "float32"


def compiler() -> bool:
    """Whether `torch.compile` can work here; GSAE_COMPILE=0 turns it off."""
    if os.environ.get("GSAE_COMPILE", "1") == "0":
        return False
    names = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return torch.cuda.is_available() or any(shutil.which(name) for name in names)


@cache
def compiled(function: Callable) -> Callable:
    # each site has shapes of its own; past the limit it would run eagerly
    torch._dynamo.config.recompile_limit = 1000
    return torch.compile(function, dynamic=False)


def gpu_memory() -> int:
    """Bytes of this process's GPU, in all: unlike those that are free, the same at every start. 0
    without one.
    """
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0


def machine() -> dict:
    """What `estimate.check` is told of the device that trains: its kind, the dtype of its products
    and, of a GPU, bytes free and in all, its name, and whether the language model goes elsewhere.
    """
    device = training_device()
    if device == "cpu":
        return {"device": device, "products": product_dtype(device)}
    free, total = torch.cuda.mem_get_info()
    same_gpu = (None, "", "cuda", f"cuda:{torch.cuda.current_device()}")
    return {
        "device": device,
        "gpu_free": free,
        "gpu_memory": total,
        "card": torch.cuda.get_device_name(),
        "apart": os.environ.get("GSAE_LM_DEVICE") not in same_gpu,
        "products": product_dtype(device),
    }
