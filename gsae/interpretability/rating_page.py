"""The page that people rate on: one file without a request to anywhere, and without a word on what
is compared.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from gsae.interpretability import dashboards
from gsae.system import files

RUN_ID = "[0-9a-f]{12}"


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
        key: of `drawing.draw`; only the study's name and the names of the page's items are read
            from it.
        data: item -> collected latent.

    Raises:
        BlindingError: when a run id of the key is on the page.
    """
    items: Sequence[str] = next(p["items"] for p in key["pages"] if p["page"] == number)
    template = resources.files("gsae.interpretability").joinpath("rate.html").read_text("utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.S)[1]
    values = {
        "policy": policy(script),
        "css": dashboards.css(),
        "study": inert({"study": key["study"], "page": number, "items": list(items)}),
        "items": "\n".join(element(item, data[item]) for item in items),
    }
    html = re.sub(r"\{\{(\w+)\}\}", lambda m: values[m[1]], template)
    runs = {row["run"] for row in key["items"].values()}
    for run in runs:
        # A run with another kind of name may well be called as a word of the corpus is.
        if re.fullmatch(RUN_ID, run) and run in html:
            raise BlindingError(f"run id {run} is on page {number}: the page would not be blind")
    return html


def policy(script: str) -> str:
    """The page's security policy: no request, no script but this one."""
    digest = dashboards.script_hash(script)
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def element(item: str, latent: dict) -> str:
    """A latent's blinded dashboard as data: a script element that nothing runs."""
    fragment = dashboards.fragment(latent, blind=True, style=False)
    return f'<script type="application/json" id="item-{item}">{inert(fragment)}</script>'


def page_names(key: Mapping) -> list[str]:
    """The pages' file names, in order."""
    if len(key["pages"]) == 1:
        return ["rate.html"]
    return [f"rate-{page['page']}.html" for page in key["pages"]]


def write(key: dict, data: Mapping[str, dict], folder: Path, force: bool = False) -> list[Path]:
    """Write `key.json` and one page a group of raters; returns the pages, then the key.

    Raises:
        FileExistsError: when the folder has the key of another study, without which its ratings
            could not be scored.
    """
    folder = Path(folder)
    target = folder / "key.json"
    if target.exists() and not force:
        study = json.loads(target.read_text()).get("study")
        if study != key["study"]:
            raise FileExistsError(
                f"{target} is the key of study {study}: without it its ratings could not be "
                "scored. Choose another --out, or --force"
            )
    folder.mkdir(parents=True, exist_ok=True)
    # All pages are made before the first is written: a page that is not blind leaves no file.
    texts = {
        folder / name: render(key, page["page"], data)
        for name, page in zip(page_names(key), key["pages"], strict=True)
    }
    texts[target] = json.dumps(key, indent=1, allow_nan=False) + "\n"
    for path, text in texts.items():
        files.write_text(path, text)
    return list(texts)
