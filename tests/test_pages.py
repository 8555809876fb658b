"""The built book: links resolve, figures have alt text, nothing is asked of another host, no
console error.
"""

import functools
import http.server
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

import gsae
from gsae.claims import claims, evidence_page
from gsae.figures import sweeps

HTML = Path(__file__).parents[1] / "_build" / "html"
pytestmark = pytest.mark.pages
CHAPTERS = sorted(
    p.relative_to(HTML).as_posix()
    for folder in ("book", "notebooks")
    for p in (HTML / folder).rglob("*.html")
)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.found.append((tag, attrs))
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}


@functools.cache
def page(name):
    return Tags((HTML / name).read_text())


def test_the_book_is_built():
    assert "book/index.html" in CHAPTERS and len(CHAPTERS) > 8, "build it first: make book"


@pytest.mark.parametrize("name", CHAPTERS)
def test_page(name):
    for tag, attrs in page(name).found:
        src = (
            attrs.get("src")
            if tag != "link"
            else attrs.get("href")
            if attrs.get("rel") == "stylesheet"
            else None
        )
        assert not (src or "").startswith(("http", "//")), f"{name} loads {src}"
        if tag == "img":
            assert attrs.get("alt"), f"{name}: an image without alt text: {attrs}"
        target = urlparse(attrs.get("href") or "")
        if (
            tag == "a"
            and not target.scheme
            and not target.netloc
            and (target.path or target.fragment)
        ):
            path = (HTML / name).parent / unquote(target.path) if target.path else HTML / name
            assert path.exists(), f"{name} links to {attrs['href']}, which is not there"
            if target.fragment and path.suffix == ".html":
                assert (
                    unquote(target.fragment)
                    in page(path.resolve().relative_to(HTML.resolve()).as_posix()).ids
                ), attrs["href"]


@pytest.mark.parametrize("name", [c for c in CHAPTERS if c.startswith("notebooks/")])
def test_a_chapter_shows_every_run_of_its_tables(name):
    assert not re.search(r"\d+ rows × \d+ columns", (HTML / name).read_text()), (
        f"{name}: a table is cut short"
    )


def test_every_verdict_of_the_first_page_leads_to_its_evidence():
    anchors = [claims.anchor(claim.item) for claim in claims.CLAIMS]
    links = [
        urlparse(attrs.get("href") or "")
        for tag, attrs in page("book/index.html").found
        if tag == "a"
    ]
    assert [
        link.fragment for link in links if link.path == "evidence_by_claim.html" and link.fragment
    ] == anchors
    evidence = page("book/evidence_by_claim.html")
    assert set(anchors) <= evidence.ids
    files = [
        a["href"] for tag, a in evidence.found if tag == "a" and a.get("href", "").endswith(".json")
    ]
    assert any(f.startswith("../_static/evidence/cpu/") for f in files) and any(
        gsae.REPO in f for f in files
    )


@pytest.mark.parametrize("name", evidence_page.with_pages("cpu"))
def test_every_sweep_has_a_page_with_its_figures_and_its_runs(name):
    found = page(f"book/sweeps/{name}.html").found
    cells = evidence_page.sweep(name, "cpu")
    drawn = sum((df["status"] != "missing").any() for df in cells.values()) * len(sweeps.FIGURES)
    assert sum(tag == "img" and "/sweep-" in attrs["src"] for tag, attrs in found) == drawn
    files = {
        Path(a["href"]).stem
        for tag, a in found
        if tag == "a" and "_static/evidence" in a.get("href", "")
    }
    assert files == {run for df in cells.values() for run in df["id"][df["status"] != "missing"]}


@pytest.mark.parametrize("name", [c for c in CHAPTERS if c.startswith("notebooks/")])
def test_launch_button(name):
    """The rocket button's address, by its shape:
    https://colab.research.google.com/github/OWNER/REPO/blob/BRANCH/FILE.
    """
    source = name.removesuffix(".html") + ".ipynb"
    owner_and_repo = urlparse(gsae.REPO).path
    found = [
        a["href"] for tag, a in page(name).found if tag == "a" and "colab" in (a.get("href") or "")
    ]
    assert found == [f"https://colab.research.google.com/github{owner_and_repo}/blob/main/{source}"]
    assert (HTML.parents[1] / source).exists()


WELL_FORMED = re.compile(
    r"https?://[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?(/[^\s<>\"]*)?(\?[^\s<>\"]*)?(#\S*)?$"
)


@pytest.mark.parametrize("name", CHAPTERS)
def test_links_to_other_hosts_without_asking_them(name):
    """Each is a well-formed address; one into this repository names a file or folder that is in
    it.
    """
    for tag, attrs in page(name).found:
        href = attrs.get("href") or ""
        if tag != "a" or not urlparse(href).netloc:
            continue
        assert WELL_FORMED.match(href), f"{name}: {href}"
        into = re.match(re.escape(gsae.REPO) + r"/(blob|tree|edit)/main/([^?#]+)", href)
        if into:
            assert (HTML.parents[1] / unquote(into[2])).exists(), (
                f"{name} links to {href}, which is not in the repository"
            )


@pytest.fixture(scope="module")
def site():
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=HTML)
    handler.log_message = lambda *a: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(site, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems, opened = [], context.new_page()
    opened.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: problems.append(str(e)))
    opened.on(
        "request", lambda r: None if r.url.startswith((site, "data:")) else problems.append(r.url)
    )
    for name in CHAPTERS:
        opened.goto(f"{site}/{name}")
        opened.wait_for_load_state("load")
        wide = opened.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 1, f"{name} overflows by {wide} pixels at {width}"
        assert not problems, f"{name}: {problems}"
        narrow = opened.evaluate(
            """[...document.querySelectorAll("figure img")].filter(i => i.getBoundingClientRect().width < 450).length"""
        )
        assert not narrow, f"{name}: {narrow} figures are too narrow to read at {width}"
    context.close()
