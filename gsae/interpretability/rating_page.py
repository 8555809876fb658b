"""The page that people rate on: one file without a request to anywhere, and without a word on what
is compared.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from gsae.interpretability import dashboards
from gsae.system import files as disk


class BlindingError(RuntimeError):
    """A page that would tell its rater what is compared."""


def inert(value: object) -> str:
    """json that ends no element and opens no comment, whatever text is in it."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def render(key: Mapping, number: int, data: Mapping[str, dict]) -> str:
    """Page `number` of a study as HTML.

    Its policy lets one script run, the page's own, by hash, and forbids every request: text of a
    corpus could do neither, even if it were not escaped.

    Args:
        key: of `pairs.draw`; only the study's name and the names of the page's items are read from
            it.
        data: item -> collected latent.

    Raises:
        BlindingError: when a run id of the key is on the page.
    """
    items: Sequence[str] = next(p["items"] for p in key["pages"] if p["page"] == number)
    shown = "\n".join(
        f'<script type="application/json" id="item-{item}">'
        f"{inert(dashboards.fragment(data[item], blind=True, style=False))}</script>"
        for item in items
    )
    template = files("gsae.interpretability").joinpath("rate.html").read_text("utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        "css": dashboards.css(),
        "study": inert({"study": key["study"], "page": number, "items": list(items)}),
        "items": shown,
    }  # fmt: skip
    html = re.sub(r"\{\{(\w+)\}\}", lambda m: values[m[1]], template)
    for run in {row["run"] for row in key["items"].values()}:
        if (
            re.fullmatch("[0-9a-f]{12}", run) and run in html
        ):  # another name may well be a word of the corpus
            raise BlindingError(f"run id {run} is on page {number}: the page would not be blind")
    return html


def write(key: dict, data: Mapping[str, dict], folder: Path, force: bool = False) -> list[Path]:
    """Write `key.json` and one page a group of raters; returns the pages, then the key.

    Raises:
        FileExistsError: when the folder has the key of another study, without which its ratings
            could not be scored.
    """
    folder = Path(folder)
    target = folder / "key.json"
    if (
        target.exists()
        and not force
        and (old := json.loads(target.read_text()).get("study")) != key["study"]
    ):
        raise FileExistsError(
            f"{target} is the key of study {old}: without it its ratings could not be scored. "
            "Choose another --out, or --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    several = len(key["pages"]) > 1
    texts = {
        folder / (f"rate-{p['page']}.html" if several else "rate.html"): render(
            key, p["page"], data
        )
        for p in key["pages"]
    }
    texts[target] = json.dumps(key, indent=1, allow_nan=False) + "\n"
    for path, text in texts.items():
        with disk.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(texts)
