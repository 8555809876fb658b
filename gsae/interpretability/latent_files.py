"""Collected latents as plain data: what is kept of them, checked, saved and loaded. No torch."""

import json
from collections.abc import Iterator
from pathlib import Path

from gsae.system import files

LATENTS_SCHEMA = 1
QUANTILES = (  # of a latent's peaks, strongest first
    (0.75, 1.0),
    (0.5, 0.75),
    (0.25, 0.5),
    (0.0, 0.25),
)
PROVENANCE = {"run": str, "lm": str, "site": str, "layer": int, "tokens": int, "corpus": str}


class DataError(RuntimeError):
    """A file of collected latents that cannot be read or contradicts itself; names the file and the
    entry.
    """


def quantiles(latent: dict, each: int = 3) -> list[tuple[float, float, list[dict]]]:
    """`(low, high, examples)`: up to `each` examples, evenly spaced, from each quarter of a
    latent's peaks.
    """
    quarters = []
    for low, high in QUANTILES:
        rows = [e for e in latent["sample"] if low <= e["q"] < high or e["q"] == high == 1]
        count = min(len(rows), each)
        spaced = [rows[i * len(rows) // count] for i in range(count)]
        quarters.append((low, high, spaced))
    return quarters


def slim(data: dict, top: int = 8, each: int = 3) -> dict:
    """What dashboards show and no more, to be committed: about 8 kB a latent."""
    latents = []
    for latent in data["latents"]:
        kept = {name: value for name, value in latent.items() if name != "background"}
        kept["top"] = latent["top"][:top]
        kept["sample"] = [e for _, _, rows in quantiles(latent, each) for e in rows]
        latents.append(kept)
    return {**data, "latents": latents, "background": []}


def validate(data: dict) -> list[str]:
    """What is wrong with collected data, one sentence each; empty if nothing is."""
    if not isinstance(data, dict) or data.get("schema") != LATENTS_SCHEMA:
        return [f"it is not data of schema {LATENTS_SCHEMA}: collect it again"]
    source = data.get("provenance", {})
    wrong = [name for name, kind in PROVENANCE.items() if not isinstance(source.get(name), kind)]
    if wrong:
        return [f"its provenance lacks {', '.join(wrong)}"]
    problems = []
    for place, latent in enumerate(data.get("latents", [])):
        name = f"latent {latent.get('latent', f'number {place}')}"
        try:
            for problem in contradictions(latent, source["tokens"]):
                problems.append(f"{name}: {problem}")
        except (KeyError, TypeError, IndexError, ValueError) as error:
            problems.append(f"{name}: {type(error).__name__} {error}")
    if not data.get("latents"):
        problems.append("it has no latents")
    return problems


def contradictions(latent: dict, tokens: int) -> Iterator[str]:
    """What is wrong with one latent, collected from so many tokens; raises where a field is not
    there or of another type.
    """
    density = sum(latent["histogram"]["counts"]) / tokens
    if abs(density - latent["density"]) > 1e-5 * latent["density"] + 1e-12:
        yield f"density {latent['density']} is not that of its histogram"
    for example in [*latent["top"], *latent["sample"]]:
        acts, texts = example["acts"], example["tokens"]
        if len(acts) != len(texts) or acts[example["at"]] != max(acts) or not 0 <= min(acts):
            yield f"the example at block {example['block']}, position {example['pos']} is damaged"
        if not all(isinstance(text, str) for text in texts) or max(acts) > latent["max"]:
            yield f"an example holds no text, or more than the maximum {latent['max']}"
    named = latent["logits"].keys() >= {"raised", "lowered"}
    if not named or not isinstance(latent["latent"], int):
        yield "its logits or its number are not there"


def save(data: dict, path: str | Path) -> Path:
    """Write collected data as json, whole or not at all. Raises DataError if it contradicts
    itself.
    """
    path = Path(path)
    problems = validate(data)
    if problems:
        raise DataError(f"not written to {path}: {'; '.join(problems[:5])}")
    files.write_json(path, data, separators=(",", ":"), allow_nan=False, end="\n")
    return path


def load(path: str | Path) -> dict:
    """Collected data from a file. Raises DataError, naming file and entry, where it is damaged."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    problems = validate(data)
    if problems:
        raise DataError(
            f"{path}: {'; '.join(problems[:5])}. Restore it with git, or collect it again"
        )
    return data
