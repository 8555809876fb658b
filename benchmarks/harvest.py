"""Harvesting activations against the least that it could cost: transformers' own forward, cut after
the same layer.
"""

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from benchmarks.cases import clock
from gsae.lm.harvest import harvest
from gsae.lm.models import LM

BLOCKS = 16  # in one forward pass, the default of `harvest`


class Harvest:
    """`gsae.lm.harvest.harvest` from token blocks to a finished store, tokens counted as the model
    reads them.
    """

    setting = "harvest"

    def __init__(self, lm: LM, site: str, layer: int, seconds: float):
        self.lm, self.site, self.layer = lm, site, layer
        self.tokens = BLOCKS * lm.context
        self.folder = Path(tempfile.mkdtemp(prefix="gsae-bench-"))
        self.run(1)
        self.count = max(1, round(seconds / self.run(1)))

    @property
    def name(self) -> str:
        return f"{self.lm.name} [{self.setting}] {self.site} {self.layer}"

    def run(self, passes: int) -> float:
        ids = np.random.default_rng(0).integers(
            self.lm.bridge.cfg.d_vocab, size=(passes * BLOCKS, self.lm.context)
        )
        blocks = Dataset.from_dict({"tokens": ids.astype("int32").tolist()}).with_format("numpy")
        rows = len(ids) * (self.lm.context - 1)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # random tokens may well have sinks
            return clock(
                lambda: harvest(
                    self.lm,
                    blocks,
                    [(self.site, self.layer)],
                    rows,
                    folder,
                    name_hash="bench",
                    batch=BLOCKS,
                ),
                1,
                str(self.lm.device),
            )

    def round(self) -> float:
        """Seconds a forward pass of `tokens` tokens."""
        return self.run(self.count) / self.count

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Bare(Harvest):
    """The same tokens through the same weights in transformers, without what lies above the
    layer.
    """

    setting = "bare forward"

    def __init__(self, lm: LM, model, site: str, layer: int, seconds: float):
        self.model = cut(model, layer).eval()
        super().__init__(lm, site, layer, seconds)

    @torch.no_grad()
    def run(self, passes: int) -> float:
        shape = BLOCKS, self.lm.context
        ids = [
            torch.randint(self.lm.bridge.cfg.d_vocab, shape, device=self.lm.device)
            for _ in range(passes)
        ]
        return clock(
            lambda: [self.model(input_ids=i, use_cache=False) for i in ids], 1, str(self.lm.device)
        )


def cut(model, layer: int):
    """The trunk of a Llama-like causal language model up to and with `layer`, without its output
    matrix.
    """
    trunk = model.base_model
    trunk.layers = trunk.layers[: layer + 1]
    return trunk


def load(device: str):
    """SmolLM2 through gsae, and a function that loads the same weights in transformers."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from gsae.lm import models, smollm2

    logging.disable_progress_bar()
    ours = models.load("smollm2", device)
    return ours, lambda: AutoModelForCausalLM.from_pretrained(
        smollm2.smollm2(), dtype=ours.dtype
    ).to(ours.device)
