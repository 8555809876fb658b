"""`gelu-1l-mini`: a one-layer GELU language model in the shape of GELU-1L, trained on the packaged
text and shipped.
"""

import hashlib
import json
import math
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

from gsae.lm import corpus
from gsae.system import files as disk
from gsae.system import tensors as files
from gsae.system import wheels

NAME = "gelu-1l-mini"
CONFIG = dict(
    d_model=128, d_head=32, n_heads=4, n_layers=1, n_ctx=128, d_vocab=4096, d_mlp=512,
    act_fn="gelu", normalization_type="LN",
)  # fmt: skip
BATCH, LR, TOKENS = 64, 2e-3, 10_000_000


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
            vocab_size=CONFIG["d_vocab"], special_tokens=["<|endoftext|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        bpe.train_from_iterator((text[:20_000] for text in texts), trainer)
        bpe.save(str(path))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def bridge(tokenizer=None, seed: int = 0) -> TransformerBridge:
    """A freshly initialised model."""
    return TransformerBridge.boot_native(
        TransformerBridgeConfig(**CONFIG, seed=seed), tokenizer=tokenizer
    )


def load_bridge(folder: Path, device: str = "cpu") -> TransformerBridge:
    """The trained model of a folder that `train` wrote. Raises FileNotFoundError where there is
    none.
    """
    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(
            f"no language model in {folder}: train it with `gsae lm train {NAME}`"
        )
    model = bridge(train_tokenizer(folder / "tokenizer.json"))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model.to(device, print_details=False).eval()


def loss(model: TransformerBridge, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy, nats."""
    logits = model(tokens, return_type="logits")
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
    )


@torch.no_grad()
def held_out(model: TransformerBridge, blocks: Tensor) -> dict[str, float]:
    """Loss on held-out text, clean and with the MLP neurons zero-ablated."""
    parts = blocks.split(BATCH)
    clean = sum(float(loss(model, p)) * len(p) for p in parts) / len(blocks)
    with model.hooks([("blocks.0.mlp.hook_post", lambda value, hook: torch.zeros_like(value))]):
        zero = sum(float(loss(model, p)) * len(p) for p in parts) / len(blocks)
    return {"held_out_loss": clean, "held_out_loss_zero_ablated_neurons": zero}


def train(
    out: Path | None = None, tokens: int = TOKENS, seed: int = 0, resume: bool = True
) -> Path:
    """Train the model, some ten minutes on two cores, and write weights, tokenizer and training
    record to `out`.

    A stopped run goes on from its last checkpoint. Returns the folder.
    """
    out = Path(out or wheels.data_path(NAME))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(out / "tokenizer.json")
    data = corpus.blocks(tokenizer, "train", CONFIG["n_ctx"], name=NAME)
    test = torch.as_tensor(
        corpus.blocks(tokenizer, "lm_heldout", CONFIG["n_ctx"], name=NAME)[:1024]["tokens"]
    ).long()
    model = bridge(tokenizer, seed)
    weights = dict(model.named_parameters())
    optimiser = torch.optim.AdamW(weights.values(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    per_step = BATCH * CONFIG["n_ctx"]
    steps, step, curve, seconds = tokens // per_step, 0, [], 0.0
    path = disk.cache_dir() / "checkpoints" / f"{NAME}-{tokens}-{seed}.safetensors"
    if resume and path.exists():
        tensors, state = files.read(path)
        model.load_state_dict({k: tensors[f"w.{k}"] for k in weights}, strict=False)
        for k, p in weights.items():
            optimiser.state[p] = {
                "step": torch.tensor(float(state["step"])),
                "exp_avg": tensors[f"m.{k}"],
                "exp_avg_sq": tensors[f"v.{k}"],
            }
        step, curve, seconds = state["step"], state["curve"], state["seconds"]
    began = saved = time.monotonic()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    with tqdm(total=steps, initial=step, desc=NAME, unit="step", mininterval=5) as bar:
        while step < steps:
            rows = [order[(step * BATCH + i) % len(order)] for i in range(BATCH)]
            batch = torch.as_tensor(data[rows]["tokens"]).long()
            for group in optimiser.param_groups:
                group["lr"] = (
                    LR * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
                )
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(model, batch)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimiser.step()
            if step % max(1, steps // 100) == 0:
                curve.append([step * per_step, round(float(value), 4)])
                bar.set_postfix(loss=f"{float(value):.3f}")
            step += 1
            bar.update()
            if time.monotonic() - saved > 60:
                saved = time.monotonic()
                m = {f"m.{k}": optimiser.state[p]["exp_avg"] for k, p in weights.items()}
                v = {f"v.{k}": optimiser.state[p]["exp_avg_sq"] for k, p in weights.items()}
                w = {f"w.{k}": p.detach() for k, p in weights.items()}
                state = {"step": step, "curve": curve, "seconds": seconds + saved - began}
                files.write(path, {**w, **m, **v}, state)
    with disk.replacing(out / "model.safetensors", SafetensorError) as temporary:
        save_file({k: p.detach().contiguous() for k, p in weights.items()}, temporary)
    record = {
        "config": CONFIG,
        "tokens": steps * per_step,
        "batch": [BATCH, CONFIG["n_ctx"]],
        "lr": LR,
        "seed": seed,
        "corpus": corpus.token_hash(data),
        "seconds": round(seconds + time.monotonic() - began),
        "weights": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()[:16],
        **held_out(model, test),
        "curve": curve,
    }
    with disk.replacing(out / "training.json") as temporary:
        temporary.write_text(json.dumps(record) + "\n")
    path.unlink(missing_ok=True)
    return out
