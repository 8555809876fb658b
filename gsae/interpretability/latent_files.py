"""Collected latents as plain data: what is kept of them, checked, saved and loaded. No torch."""

import json
from pathlib import Path

from gsae.system import files

SCHEMA = 1


QUANTILES = (
    (0.75, 1.0),
    (0.5, 0.75),
    (0.25, 0.5),
    (0.0, 0.25),
)  # of a latent's peaks, strongest first


PROVENANCE = {"run": str, "lm": str, "site": str, "layer": int, "tokens": int, "corpus": str}


class DataError(RuntimeError):
    """A file of collected latents that cannot be read or contradicts itself; names the file and the
    entry.
    """


def quantiles(latent: dict, each: int = 3) -> list[tuple[float, float, list[dict]]]:
    """`(low, high, examples)`: up to `each` examples, evenly spaced, from each quarter of a
    latent's peaks.
    """
    found = []
    for low, high in QUANTILES:
        rows = [e for e in latent["sample"] if low <= e["q"] < high or e["q"] == high == 1]
        count = min(len(rows), each)
        found.append((low, high, [rows[i * len(rows) // count] for i in range(count)]))
    return found


def slim(data: dict, top: int = 8, each: int = 3) -> dict:
    """What dashboards show and no more, to be committed: about 8 kB a latent."""
    latents = []
    for latent in data["latents"]:
        sample = [e for _, _, rows in quantiles(latent, each) for e in rows]
        kept = {k: v for k, v in latent.items() if k != "background"}
        latents.append({**kept, "top": latent["top"][:top], "sample": sample})
    return {**data, "latents": latents, "background": []}


def validate(data: dict) -> list[str]:
    """What is wrong with collected data, one sentence each; empty if nothing is."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        return [f"it is not data of schema {SCHEMA}: collect it again"]
    source, problems = data.get("provenance", {}), []
    if wrong := [k for k, kind in PROVENANCE.items() if not isinstance(source.get(k), kind)]:
        return [f"its provenance lacks {', '.join(wrong)}"]
    for place, latent in enumerate(data.get("latents", [])):
        name = f"latent {latent.get('latent', f'number {place}')}"
        try:
            on = sum(latent["histogram"]["counts"])
            if abs(on / source["tokens"] - latent["density"]) > 1e-5 * latent["density"] + 1e-12:
                problems.append(f"{name}: density {latent['density']} is not that of its histogram")
            for e in [*latent["top"], *latent["sample"]]:
                acts = e["acts"]
                if (
                    len(acts) != len(e["tokens"])
                    or acts[e["at"]] != max(acts)
                    or not 0 <= min(acts)
                ):
                    problems.append(
                        f"{name}: the example at block {e['block']}, position {e['pos']} is damaged"
                    )
                if not all(isinstance(t, str) for t in e["tokens"]) or max(acts) > latent["max"]:
                    problems.append(
                        f"{name}: an example holds no text, or more than the maximum "
                        f"{latent['max']}"
                    )
            if not latent["logits"].keys() >= {"raised", "lowered"} or not isinstance(
                latent["latent"], int
            ):
                problems.append(f"{name}: its logits or its number are not there")
        except (KeyError, TypeError, IndexError, ValueError) as error:
            problems.append(f"{name}: {type(error).__name__} {error}")
    return problems or ([] if data.get("latents") else ["it has no latents"])


def save(data: dict, path: str | Path) -> Path:
    """Write collected data as json, whole or not at all. Raises DataError if it contradicts
    itself.
    """
    path = Path(path)
    if problems := validate(data):
        raise DataError(f"not written to {path}: {'; '.join(problems[:5])}")
    with files.replacing(path) as temporary:
        temporary.write_text(
            json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n", "ascii"
        )
    return path


def load(path: str | Path) -> dict:
    """Collected data from a file. Raises DataError, naming file and entry, where it is damaged."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if problems := validate(data):
        raise DataError(
            f"{path}: {'; '.join(problems[:5])}. Restore it with git, or collect it again"
        )
    return data
