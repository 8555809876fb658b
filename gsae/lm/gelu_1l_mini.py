"""`gelu-1l-mini`: a one-layer GELU language model in the shape of GELU-1L, trained on the packaged
text and shipped.
"""

import hashlib
import math
import time
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

from gsae.lm import corpus
from gsae.lm.names import MINI
from gsae.system import files, wheels

CONFIG = {
    "d_model": 128,
    "d_head": 32,
    "n_heads": 4,
    "n_layers": 1,
    "n_ctx": 128,
    "d_vocab": 4096,
    "d_mlp": 512,
    "act_fn": "gelu",
    "normalization_type": "LN",
}
BATCH, LR, TOKENS = 64, 2e-3, 10_000_000
PER_STEP = BATCH * CONFIG["n_ctx"]  # tokens


def train_tokenizer(path: Path, documents: int = 4000) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 4,096 tokens, trained on a fixed sample of the training text; kept at
    `path`.
    """
    if not path.exists():
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        texts = corpus.documents("train").shuffle(seed=0).select(range(documents))["text"]
        trainer = trainers.BpeTrainer(
            vocab_size=CONFIG["d_vocab"],
            special_tokens=["<|endoftext|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        beginnings = (text[:20_000] for text in texts)  # so that no long document dominates
        bpe.train_from_iterator(beginnings, trainer)
        bpe.save(str(path))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def bridge(tokenizer=None, seed: int = 0) -> TransformerBridge:
    """A freshly initialised model."""
    config = TransformerBridgeConfig(**CONFIG, seed=seed)
    return TransformerBridge.boot_native(config, tokenizer=tokenizer)


def load_bridge(folder: Path, device: str = "cpu") -> TransformerBridge:
    """The trained model of a folder that `train` wrote. Raises FileNotFoundError where there is
    none.
    """
    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(
            f"no language model in {folder}: train it with `gsae lm train {MINI}`"
        )
    model = bridge(train_tokenizer(folder / "tokenizer.json"))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model.to(device, print_details=False).eval()


def loss(model: TransformerBridge, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy, nats."""
    logits = model(tokens, return_type="logits")
    predictions = logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(predictions, tokens[:, 1:].flatten())


@torch.no_grad()
def held_out(model: TransformerBridge, blocks: Tensor) -> dict[str, float]:
    """Loss on held-out text, clean and with the MLP neurons zero-ablated."""

    def mean_loss() -> float:
        summed = sum(float(loss(model, part)) * len(part) for part in blocks.split(BATCH))
        return summed / len(blocks)

    clean = mean_loss()
    with model.hooks([("blocks.0.mlp.hook_post", lambda value, hook: torch.zeros_like(value))]):
        zero_ablated = mean_loss()
    return {"held_out_loss": clean, "held_out_loss_zero_ablated_neurons": zero_ablated}


def train(out: Path | None = None, tokens: int = TOKENS, seed: int = 0) -> Path:
    """Train the model, some ten minutes on two cores, and write weights, tokenizer and training
    record to `out`. Returns the folder.
    """
    out = Path(out or wheels.data_path(MINI))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(out / "tokenizer.json")
    data = corpus.blocks(tokenizer, "train", CONFIG["n_ctx"], name=MINI)
    test = corpus.blocks(tokenizer, "lm_heldout", CONFIG["n_ctx"], name=MINI)
    test = torch.as_tensor(test[:1024]["tokens"]).long()
    model = bridge(tokenizer, seed)
    began = time.monotonic()
    steps = tokens // PER_STEP
    curve = _fit(model, data, steps, seed)
    path = out / "model.safetensors"
    with files.replacing(path, SafetensorError) as temporary:
        weights = model.named_parameters()
        save_file({name: p.detach().contiguous() for name, p in weights}, temporary)
    record = {
        "config": CONFIG,
        "tokens": steps * PER_STEP,
        "batch": [BATCH, CONFIG["n_ctx"]],
        "lr": LR,
        "seed": seed,
        "corpus": corpus.token_hash(data),
        "seconds": round(time.monotonic() - began),
        "weights": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        **held_out(model, test),
        "curve": curve,
    }
    files.write_json(out / "training.json", record, end="\n")
    return out


def _fit(model: TransformerBridge, data: Dataset, steps: int, seed: int) -> list[list]:
    """Take all steps. Returns the curve: tokens read and training loss, a hundred times."""
    weights = dict(model.named_parameters())
    optimiser = torch.optim.AdamW(weights.values(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    curve = []
    with tqdm(total=steps, desc=MINI, unit="step", mininterval=5) as bar:
        for step in range(steps):
            rows = [order[(step * BATCH + i) % len(order)] for i in range(BATCH)]
            batch = torch.as_tensor(data[rows]["tokens"]).long()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps)
            # weights and Adam stay in float32; the forward pass takes half the time in bfloat16
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(model, batch)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimiser.step()
            if step % max(1, steps // 100) == 0:
                curve.append([step * PER_STEP, round(float(value), 4)])
                bar.set_postfix(loss=f"{float(value):.3f}")
            bar.update()
    return curve


def learning_rate(step: int, steps: int) -> float:
    """A linear warm-up over 100 steps, and a half cosine down to 0 over all of them."""
    warm_up = min(1, (step + 1) / 100)
    return LR * warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))
