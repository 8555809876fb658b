"""Collected latents as HTML: a fragment a latent, and a self-contained page of many.

Corpus text is never trusted: it is escaped here, in one place, and characters that cannot be seen
are named.
"""

import base64
import hashlib
import json
import math
import unicodedata
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from gsae.interpretability.latent_files import quantiles
from gsae.system import files

STEPS = 4  # shades on a rating page
SPACES = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}


def visible(text: str) -> str:
    """Text with a visible sign for every character that has no shape of its own, escaped for HTML.

    Controls, bidirectional marks, zero-width and unassigned characters become "⟨U+200F⟩"; line ends
    get a "↵".
    """
    shown = []
    for character in text:
        category = unicodedata.category(character)
        if character in SPACES:
            shown.append(SPACES[character])
        elif category[0] == "C" or category in ("Zl", "Zp"):
            shown.append(f"⟨U+{ord(character):04X}⟩")
        else:
            shown.append(character)
    return escape("".join(shown))


def shade(act: float | int, latent: dict, blind: bool) -> float:
    """How dark a token is, 0 to 1: its activation over the latent's maximum.

    Blind, its rank among the latent's activations above 0, in `STEPS` steps: a gate leaves a gap
    above 0, and shares of the maximum would show it.
    """
    if not blind:
        return min(act / latent["max"], 1)
    counts = latent["histogram"]["counts"]
    edges = np.arange(len(counts) + 1) * latent["histogram"]["width"]
    share_below = np.cumsum([0, *counts]) / sum(counts)
    rank = np.interp(act, edges, share_below)
    return max(1, math.ceil(rank * STEPS)) / STEPS


def snippet(example: dict, latent: dict, blind: bool) -> str:
    """One example as text, tokens shaded by their activation, the example's own token in a
    `<mark>`.
    """
    parts = []
    for i, (token, act) in enumerate(zip(example["tokens"], example["acts"], strict=True)):
        text = visible(token)
        if act > 0:
            tag = "mark" if i == example["at"] else "span"
            share = shade(act, latent, blind)
            title = "" if blind else f' title="{share:.0%} of the maximum"'
            text = f'<{tag} style="--a:{share:.2g}"{title}>{text}</{tag}>'
        if act > 0 or not token.isascii():
            # Isolated, so that a right-to-left token cannot reorder its neighbours.
            text = f"<bdi>{text}</bdi>"
        parts.append(text)
    return f'<span class="text" dir="ltr">{"".join(parts)}</span>'


def examples(title: str, rows: list[dict], latent: dict, blind: bool) -> str:
    if not rows:
        return ""
    items = []
    for example in rows:
        act = f"{example['acts'][example['at']]:.3g}"
        value = f'<span class="value" aria-label="activation {act}">{act}</span>'
        items.append(f"<li>{'' if blind else value}{snippet(example, latent, blind)}</li>")
    return f"<h4>{escape(title)}</h4><ol>{''.join(items)}</ol>"


def logits(title: str, rows: list) -> str:
    cells = [
        f"<tr><td><code>{visible(token)}</code></td><td>{logit:+.2f}</td></tr>"
        for token, logit in rows
    ]
    return f"<table><caption>{title}</caption><tbody>{''.join(cells)}</tbody></table>"


def histogram(hist: dict) -> str:
    """Bars of the activations above 0, as an inline SVG with a text for screen readers."""
    counts, width = hist["counts"], hist["width"]
    if not counts:
        return ""
    highest, step = max(counts), 240 / len(counts)
    bars = []
    for i, count in enumerate(counts):
        if count:
            height = 48 * math.sqrt(count / highest)
            bars.append(
                f'<rect x="{i * step:.1f}" y="{48 - height:.1f}" '
                f'width="{0.9 * step:.1f}" height="{height:.1f}"/>'
            )
    label = f"Histogram of {sum(counts):,} activations above 0"
    note = (
        f"Activations above 0, from 0 to {len(counts) * width:.3g}; heights are square roots "
        "of counts"
    )
    svg = (
        '<svg viewBox="0 0 240 49" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{"".join(bars)}</svg>'
    )
    return f'<figure class="hist">{svg}<figcaption>{note}</figcaption></figure>'


def facts(latent: dict) -> str:
    """What would tell one SAE, site or layer from another: shown in an open dashboard only."""
    similar, neurons, aligned = (latent.get(name) for name in ("similar", "neurons", "aligned"))
    parts = []
    if similar:
        parts.append(
            f"<p>Most similar latents (cosine of decoder directions): {listed(similar, '.2f')}</p>"
        )
    if neurons:
        parts.append(
            "<p>Neurons with the largest share of the direction's squared norm: "
            f"{listed(neurons, '.0%')}</p>"
        )
    if aligned:
        parts.append(
            "<p>Neurons of this layer that write most nearly along it (cosine, of either sign): "
            f"{listed(aligned, '.2f')}</p>"
        )
    return "".join(parts)


def listed(entries: list[list], form: str) -> str:
    """`[index, value]` entries as "17 (0.41), …"."""
    return ", ".join(f"{index} ({value:{form}})" for index, value in entries)


def groups(latent: dict) -> list[tuple[str, list[dict]]]:
    """Titled lists of examples: the strongest, then some of each quarter of the latent's peaks."""
    quarters = [
        (f"Quantiles {low:.0%} to {high:.0%} of its peaks", rows)
        for low, high, rows in quantiles(latent)
    ]
    return [("Strongest examples", latent["top"]), *quarters]


def density(latent: dict, blind: bool) -> str:
    percent = format(100 * latent["density"], ".1g" if blind else ".2g")
    text = f"On at {float(percent):g} % of tokens"  # as a number again: never 2e+01
    return text if blind else f"{text}, at most {latent['max']:.3g}"


def fragment(latent: dict, blind: bool = False, style: bool = True) -> str:
    """One latent as HTML, for a notebook's output or inside another page; inherits the text colour
    around it.

    Args:
        latent: one entry of `collect(...)["latents"]`.
        blind: leave out whatever could tell the architecture, site or layer (D15): indices, similar
            latents (their numbers give the dictionary's size), neurons, the histogram and every
            value of an activation (a gate leaves a gap above 0). Left in, since the paper's raters
            saw them too and no rating is possible without: the examples, shaded by rank among the
            latent's activations, the density to one digit, and the logits.
        style: include the style sheet; False where the page already holds `css()`.
    """
    number = "" if blind else f"<h3>Latent {latent['latent']}</h3>"
    if not latent["max"] > 0:
        body = "<p>Never on in the text that was read.</p>"
    else:
        shown = "".join(examples(title, rows, latent, blind) for title, rows in groups(latent))
        effect = logits("Logits most raised", latent["logits"]["raised"])
        effect += logits("Logits most lowered", latent["logits"]["lowered"])
        extra = "" if blind else histogram(latent["histogram"]) + facts(latent)
        body = f'<p>{density(latent, blind)}.</p>{extra}<div class="logits">{effect}</div>{shown}'
    sheet = f"<style>{css()}</style>" if style else ""
    return f'{sheet}<div class="gsae-latent">{number}{body}</div>'


def _resource(name: str) -> str:
    return resources.files("gsae.interpretability").joinpath(name).read_text("utf-8")


def css() -> str:
    """The style sheet of `fragment`, for a page that shows many."""
    return _resource("fragment.css")


def page(data: dict, title: str = "Latents") -> str:
    """Collected data as one self-contained HTML page: nothing is requested from anywhere, keys move
    between latents.
    """
    rows = []
    for latent in data["latents"]:
        row = {name: latent[name] for name in ("latent", "density", "max")}
        rows.append(row | {"html": fragment(latent, style=False)})
    template, script = _resource("dashboard.html"), _resource("dashboard.js")
    parts = {
        "TITLE": visible(title),
        "SOURCE": visible(source(data["provenance"])),
        "CSS": css(),
        "HASH": script_hash(script),
        "SCRIPT": script,
        "DATA": in_script(rows),
    }
    pieces = template.split("@@")  # text, name, text, name, …
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def source(provenance: dict) -> str:
    """Where collected latents are from, in words."""
    p = provenance
    return (
        f"{p['lm']}, {p['site']}, layer {p['layer']}, run {p['run'] or 'unnamed'}, "
        f"{p['tokens']:,} tokens read"
    )


def in_script(rows: list[dict]) -> str:
    """json for a script element. "<" never appears in it, so that no text can end the element."""
    text = json.dumps(rows, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def script_hash(script: str) -> str:
    """The hash by which a page's policy names the one script that may run: text that got through
    the escaping still could not.
    """
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def write_page(data: dict, path: str | Path, title: str = "Latents") -> Path:
    """Write `page` to a file, whole or not at all."""
    path = Path(path)
    files.write_text(path, page(data, title))
    return path
