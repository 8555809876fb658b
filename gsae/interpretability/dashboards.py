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
from importlib.resources import files
from pathlib import Path

import numpy as np

from gsae.interpretability.latent_files import quantiles
from gsae.system import files as disk

STEPS = 4  # shades on a rating page
SPACES = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}


def visible(text: str) -> str:
    """Text with a visible sign for every character that has no shape of its own, escaped for HTML.

    Controls, bidirectional marks, zero-width and unassigned characters become "⟨U+200F⟩"; line ends
    get a "↵".
    """
    shown = []
    for c in text:
        hidden = unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp")
        shown.append(SPACES.get(c) or (f"⟨U+{ord(c):04X}⟩" if hidden else c))
    return escape("".join(shown))


def shade(act: float | int, latent: dict, blind: bool) -> float:
    """How dark a token is, 0 to 1: its activation over the latent's maximum.

    Blind, its rank among the latent's activations above 0, in `STEPS` steps: a gate leaves a gap
    above 0, and shares of the maximum would show it.
    """
    if not blind:
        return min(act / latent["max"], 1)
    counts, width = latent["histogram"]["counts"], latent["histogram"]["width"]
    rank = np.interp(act, np.arange(len(counts) + 1) * width, np.cumsum([0, *counts]) / sum(counts))
    return max(1, math.ceil(rank * STEPS)) / STEPS


def snippet(example: dict, latent: dict, blind: bool) -> str:
    """One example as text, tokens shaded by their activation, the example's own token in a
    `<mark>`.
    """
    parts = []
    for i, (token, act) in enumerate(zip(example["tokens"], example["acts"], strict=True)):
        text = visible(token)
        if act > 0:
            tag, share = ("mark" if i == example["at"] else "span"), shade(act, latent, blind)
            told = "" if blind else f' title="{share:.0%} of the maximum"'
            text = f'<{tag} style="--a:{share:.2g}"{told}>{text}</{tag}>'
        # Isolated, so that a right-to-left token cannot reorder its neighbours.
        parts.append(f"<bdi>{text}</bdi>" if act > 0 or not token.isascii() else text)
    return f'<span class="text" dir="ltr">{"".join(parts)}</span>'


def examples(title: str, rows: list[dict], latent: dict, blind: bool) -> str:
    if not rows:
        return ""
    items = []
    for e in rows:
        value = f"{e['acts'][e['at']]:.3g}"
        told = (
            "" if blind else f'<span class="value" aria-label="activation {value}">{value}</span>'
        )
        items.append(f"<li>{told}{snippet(e, latent, blind)}</li>")
    return f"<h4>{escape(title)}</h4><ol>{''.join(items)}</ol>"


def logits(title: str, rows: list) -> str:
    cells = "".join(
        f"<tr><td><code>{visible(t)}</code></td><td>{v:+.2f}</td></tr>" for t, v in rows
    )
    return f"<table><caption>{title}</caption><tbody>{cells}</tbody></table>"


def histogram(hist: dict) -> str:
    """Bars of the activations above 0, as an inline SVG with a text for screen readers."""
    counts, width = hist["counts"], hist["width"]
    if not counts:
        return ""
    highest, step = max(counts), 240 / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{48 - 48 * math.sqrt(c / highest):.1f}" '
        f'width="{0.9 * step:.1f}" '
        f'height="{48 * math.sqrt(c / highest):.1f}"/>'
        for i, c in enumerate(counts)
        if c
    )
    label = f"Histogram of {sum(counts):,} activations above 0"
    note = (
        f"Activations above 0, from 0 to {len(counts) * width:.3g}; heights are square roots "
        "of counts"
    )
    svg = (
        '<svg viewBox="0 0 240 49" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{bars}</svg>'
    )
    return f'<figure class="hist">{svg}<figcaption>{note}</figcaption></figure>'


def facts(latent: dict) -> str:
    """What would tell one SAE, site or layer from another: shown in an open dashboard only."""
    near = ", ".join(f"{i} ({cos:.2f})" for i, cos in latent.get("similar", []))
    parts = [f"<p>Most similar latents (cosine of decoder directions): {near}</p>"] if near else []
    if neurons := latent.get("neurons"):
        listed = ", ".join(f"{i} ({share:.0%})" for i, share in neurons)
        parts.append(
            f"<p>Neurons with the largest share of the direction's squared norm: {listed}</p>"
        )
    if aligned := latent.get("aligned"):
        listed = ", ".join(f"{i} ({cos:.2f})" for i, cos in aligned)
        parts.append(
            "<p>Neurons of this layer that write most nearly along it (cosine, of either sign): "
            f"{listed}</p>"
        )
    return "".join(parts)


def groups(latent: dict) -> list[tuple[str, list[dict]]]:
    """Titled lists of examples: the strongest, then some of each quarter of the latent's peaks."""
    quarters = [
        (f"Quantiles {low:.0%} to {high:.0%} of its peaks", rows)
        for low, high, rows in quantiles(latent)
    ]
    return [("Strongest examples", latent["top"]), *quarters]


def density(latent: dict, blind: bool) -> str:
    share = f"{float(format(100 * latent['density'], '.1g' if blind else '.2g')):g}"
    return f"On at {share} % of tokens" + ("" if blind else f", at most {latent['max']:.3g}")


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
    return files("gsae.interpretability").joinpath(name).read_text("utf-8")


def css() -> str:
    """The style sheet of `fragment`, for a page that shows many."""
    return _resource("fragment.css")


def page(data: dict, title: str = "Latents") -> str:
    """Collected data as one self-contained HTML page: nothing is requested from anywhere, keys move
    between latents.
    """
    rows = [
        {
            "latent": v["latent"],
            "density": v["density"],
            "max": v["max"],
            "html": fragment(v, style=False),
        }
        for v in data["latents"]
    ]
    # "<" never appears in the script element that holds the data, so that no text can end it.
    held = (
        json.dumps(rows, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    template, script = _resource("dashboard.html"), _resource("dashboard.js")
    # The one script that may run is ours, by its hash: text that got through the escaping still
    # could not.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    p = data["provenance"]
    source = (
        f"{p['lm']}, {p['site']}, layer {p['layer']}, run {p['run'] or 'unnamed'}, "
        f"{p['tokens']:,} tokens read"
    )
    parts = {
        "TITLE": visible(title),
        "SOURCE": visible(source),
        "CSS": css(),
        "HASH": digest,
        "SCRIPT": script,
        "DATA": held,
    }
    pieces = template.split("@@")  # text, name, text, name, …
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def write(data: dict, path: str | Path, title: str = "Latents") -> Path:
    """Write `page` to a file, whole or not at all."""
    path = Path(path)
    with disk.replacing(path) as temporary:
        temporary.write_text(page(data, title), "utf-8")
    return path
