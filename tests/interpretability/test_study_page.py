"""The rating page: blind, inert to what a corpus holds, and rated from beginning to end in a real
browser.
"""

import json
import re

import pytest
import study_data

from gsae.cli import main
from gsae.interpretability import (
    compared_saes,
    drawing,
    matched_pairs,
    rating_page,
    rating_statistics,
)

EVIL = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    "<!--",
    "{{css}}",
    "\u2028",
]
FORBIDDEN = r"(?i)gated|baseline|\blayers?\b|\bsites?\b|\barms?\b|attn|resid|mlp|post\b|lm-a|\blambda\b|\bL0\b"


def make(folder, per_page=3, **options):
    """A small study: its key, and the html of its first page."""
    folder.mkdir(exist_ok=True)
    key, data = drawing.draw(
        matched_pairs.match(compared_saes.collected(study_data.small(folder)))[0],
        per_page,
        **options,
    )
    return key, data, rating_page.write(key, data, folder / "out")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make(tmp_path_factory.mktemp("study"))


# Blinding, in the file itself.


def test_the_page_does_not_tell_what_is_compared(study):
    key, data, (html, _) = study
    text = html.read_text()
    assert len(re.findall("On at ", text)) == 12  # the dashboards are there
    assert not re.findall(FORBIDDEN, text)
    for item in key["items"].values():
        assert item["run"] not in text
        assert f"Latent {item['latent']}" not in text and f'"latent": {item["latent"]}' not in text
    assert re.search(FORBIDDEN, json.dumps(key))  # and the key does


def test_the_pages_hold_only_their_items_and_no_seed(tmp_path):
    key, data, written = make(tmp_path, per_page=2, pages=3, shared=1, seed=87654321)
    for dealt, path in zip(key["pages"], written, strict=False):
        text = path.read_text()
        assert {m for m in re.findall(r'id="item-(\w+)"', text)} == set(dealt["items"])
        assert "87654321" not in text and not re.findall(FORBIDDEN, text)


def test_exchanging_the_arms_leaves_the_page_as_it_is_but_for_the_dashboards(tmp_path):
    texts = []
    for arms in (("gated", "baseline"), ("baseline", "gated")):
        folder = tmp_path / arms[0]
        folder.mkdir()
        key, data = drawing.draw(
            matched_pairs.match(compared_saes.collected(study_data.small(folder, arms=arms)))[0], 3
        )
        blank = dict.fromkeys(data, study_data.latent(3))
        texts.append(rating_page.render(key | {"study": "x"}, 1, blank))
    assert texts[0] == texts[1]


def test_a_run_id_in_a_dashboard_is_refused(study):
    key, data, _ = study
    item = key["pages"][0]["items"][0]
    run = key["items"][item]["run"]
    told = json.loads(json.dumps(data[item]))
    told["top"][0]["tokens"][0] = run
    with pytest.raises(rating_page.BlindingError, match=run):
        rating_page.render(key, 1, {**data, item: told})


def test_a_page_asks_nothing_of_any_host(study):
    text = study[2][0].read_text()
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[a-z./]""", text)
    assert "default-src 'none'" in text and "unsafe-eval" not in text
    assert not re.search(r"script-src[^;]*unsafe-inline", text)


# In a browser.


@pytest.fixture
def opened(browser):
    """Opens a file in a context of its own; fails at the end on any error, or request beyond the
    file.
    """
    problems, contexts = [], []

    def visit(path, **options):
        context = browser.new_context(offline=True, accept_downloads=True, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda e: problems.append(str(e)))
        tab.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "blob:")) else problems.append(r.url),
        )
        tab.goto(path.as_uri())
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not problems


def enter(tab, rater="AB"):
    tab.fill("#rater", rater)
    tab.press("#rater", "Enter")
    tab.wait_for_selector("#work:not([hidden])")


def shown(tab):
    """The item in view, from its place on the page."""
    items = json.loads(tab.text_content("#study"))["items"]
    return items[int(re.search(r"Latent (\d+)", tab.text_content("#place"))[1]) - 1]


def export(tab, folder, button="#export"):
    with tab.expect_download() as download:
        tab.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_whole_study_with_keys_and_mouse(study, opened, tmp_path, capsys):
    key, _, (html, kept) = study
    tab = opened(html)
    enter(tab)
    keys = {"No": ["1", "n"], "Maybe": ["2", "m"], "Yes": ["3", "y"]}
    given, names = {}, list(rating_statistics.SCALE)
    for step in range(12):
        item = shown(tab)
        row = key["items"][item]
        rating = names[(row["replicate"] + (row["arm"] == "gated")) % 3]
        if step % 3 == 0:
            tab.keyboard.press("e")
            tab.keyboard.type("3 no, yes: words")  # letters that are keys elsewhere
            tab.keyboard.press("Escape")
        if step % 2:
            tab.keyboard.press(keys[rating][step // 2 % 2])
        else:
            tab.click(f"[data-rating={rating}]")
        given[item] = rating
        assert f"{step + 1} of 12 rated" in tab.text_content("#count")
        if step == 5:
            tab.reload()
            assert (
                "6 of 12 rated" in tab.text_content("#count") and tab.text_content("#name") == "AB"
            )
            assert tab.is_hidden("#intro") and shown(tab) not in given
    assert tab.is_visible("#done")
    assert tab.evaluate("document.activeElement.id") == "done-title"
    path = export(tab, tmp_path, "#export-done")
    data = json.loads(path.read_text())
    assert {r["item"]: r["rating"] for r in data["ratings"]} == given
    assert sum(r["explanation"] == "3 no, yes: words" for r in data["ratings"]) == 4
    assert all(r["seconds"] >= 0 and r["at"].endswith("Z") for r in data["ratings"])
    assert (
        main(["study", "score", str(path), "--key", str(kept), "--json", str(tmp_path / "r.json")])
        == 0
    )
    row = json.loads((tmp_path / "r.json").read_text())["comparisons"][0]["contrasts"]["all"]
    # replicates 0, 1, 2: gated Maybe, Yes, No; baseline No, Maybe, Yes; at two places
    assert (row["pairs"], row["mean_arm"], row["mean_reference"], row["difference"]) == (6, 1, 1, 0)
    table = json.loads((tmp_path / "r.json").read_text())["comparisons"][0]["contingency"]["all"]
    assert table == [[0, 0, 2], [2, 0, 0], [0, 2, 0]]
    assert "6" in capsys.readouterr().out


def test_what_was_written_survives_closing_the_page(study, opened, tmp_path):
    tab = opened(study[2][0])
    enter(tab)
    tab.fill("#explanation", "half a thought")
    assert "half a thought" in tab.evaluate(
        "Object.values(localStorage).join()"
    )  # at once: a crash loses nothing
    tab.goto("about:blank")
    tab.goto(study[2][0].as_uri())
    assert tab.input_value("#explanation") == "half a thought"
    assert "0 of 12 rated" in tab.text_content("#count") and tab.is_disabled("#export")


def test_changing_a_rating_stays_in_place(study, opened, tmp_path):
    tab = opened(study[2][0])
    enter(tab)
    first = shown(tab)
    tab.keyboard.press("3")
    tab.keyboard.press("ArrowLeft")
    assert shown(tab) == first and tab.get_attribute("[data-rating=Yes]", "aria-pressed") == "true"
    tab.keyboard.press("1")
    assert shown(tab) == first and tab.get_attribute("[data-rating=No]", "aria-pressed") == "true"
    tab.click("#unrated")
    assert shown(tab) != first
    (row,) = json.loads(export(tab, tmp_path).read_text())["ratings"]
    assert (row["item"], row["rating"]) == (first, "No")


def test_keys_can_be_switched_off_and_spare_shortcuts_of_the_browser(study, opened):
    tab = opened(study[2][0])
    enter(tab)
    tab.keyboard.press("Control+1")
    assert "0 of 12" in tab.text_content("#count")
    tab.click("#help summary")
    tab.uncheck("#keys")
    tab.focus("#place")
    tab.keyboard.press("1")
    assert "0 of 12" in tab.text_content("#count")


def test_two_tabs_of_one_rater_keep_both_ratings(study, opened, tmp_path):
    tab = opened(study[2][0])
    enter(tab)
    other = tab.context.new_page()
    other.goto(study[2][0].as_uri())

    def turn_to(
        page, count
    ):  # a tab in the background hears of keys and storage late on a busy machine, or not at all
        page.bring_to_front()
        page.evaluate("dispatchEvent(new Event('focus'))")
        page.locator("#count", has_text=count).wait_for(timeout=30_000)

    turn_to(tab, "0 of 12")
    tab.keyboard.press("3")
    tab.locator("#count", has_text="1 of 12").wait_for(timeout=30_000)
    turn_to(other, "1 of 12")
    other.click("#unrated")
    other.keyboard.press("1")
    other.locator("#count", has_text="2 of 12").wait_for(timeout=30_000)
    turn_to(tab, "2 of 12")
    assert sorted(
        r["rating"] for r in json.loads(export(tab, tmp_path).read_text())["ratings"]
    ) == ["No", "Yes"]


def test_two_raters_of_one_browser_do_not_mix(study, opened, tmp_path):
    tab = opened(study[2][0])
    enter(tab, "AB")
    tab.keyboard.press("3")
    tab.click("#switch")
    enter(tab, "Ü. / <b>")
    assert "0 of 12" in tab.text_content("#count")
    tab.keyboard.press("1")
    path = export(tab, tmp_path)
    assert [r["rating"] for r in json.loads(path.read_text())["ratings"]] == [
        "No"
    ] and "/" not in path.name
    tab.click("#switch")
    enter(tab, "AB")
    assert "1 of 12" in tab.text_content("#count")


def test_going_on_in_another_browser(study, opened, tmp_path):
    tab = opened(study[2][0])
    enter(tab)
    for k in "123":
        tab.keyboard.press(k)
    path = export(tab, tmp_path)
    other = opened(study[2][0])
    enter(other)
    other.set_input_files("#import", path)
    other.locator("#count", has_text="3 of").wait_for()
    assert [r["rating"] for r in json.loads(export(other, tmp_path).read_text())["ratings"]] == [
        "No",
        "Maybe",
        "Yes",
    ]
    (tmp_path / "x.json").write_text('{"study": "another"}')
    other.set_input_files("#import", tmp_path / "x.json")
    other.locator("#status", has_text="not a file of this page").wait_for()


def test_a_browser_that_keeps_nothing_is_told(study, browser):
    context = browser.new_context()
    tab = context.new_page()
    tab.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } })"
    )
    tab.goto(study[2][0].as_uri())
    enter(tab)
    tab.keyboard.press("2")
    assert "export your ratings before you close" in tab.text_content(
        "#trouble"
    ) and tab.is_visible("#trouble")
    assert "1 of 12" in tab.text_content("#count")
    context.close()


def test_text_of_the_corpus_runs_nothing_and_ends_nothing(study, opened, tmp_path, monkeypatch):
    key, data, _ = study
    hostile = json.loads(json.dumps(data))
    for latent in hostile.values():
        latent["top"][0]["tokens"][: len(EVIL)] = EVIL
        latent["logits"]["raised"] = [[text, 1.0] for text in EVIL]
    (tmp_path / "evil.html").write_text(rating_page.render(key, 1, hostile), "utf-8")
    tab = opened(tmp_path / "evil.html")
    enter(tab)
    assert EVIL[0] in tab.text_content("#latent") and "{{css}}" in tab.text_content("#latent")
    assert tab.evaluate("window.hacked") is None
    # Even if nothing were escaped, the policy would stop it.
    from gsae.interpretability import dashboards

    monkeypatch.setattr(
        dashboards, "fragment", lambda latent, **options: "<p>On at</p>" + "".join(EVIL)
    )
    (tmp_path / "worse.html").write_text(rating_page.render(key, 1, data), "utf-8")
    worse = tab.context.new_page()
    worse.goto((tmp_path / "worse.html").as_uri())
    enter(worse) if worse.is_visible("#intro") else None
    worse.keyboard.press("1")
    assert worse.evaluate("window.hacked") is None and "1 of 12" in worse.text_content("#count")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(study, opened, width, scheme):
    tab = opened(study[2][0], viewport={"width": width, "height": 800}, color_scheme=scheme)
    for stage in ("intro", "work", "done"):
        if stage == "work":
            enter(tab)
        if stage == "done":
            for _ in range(12):
                tab.keyboard.press("2")
        assert tab.is_visible(f"#{stage}")
        assert (
            tab.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            <= 1
        )
        contrasts = tab.evaluate(CONTRAST)
        assert contrasts and min(c for c, _ in contrasts) >= 4.5, min(contrasts)
        if stage == "work":
            for rating in (
                rating_statistics.SCALE
            ):  # the buttons are in view without scrolling, and large enough for a thumb
                box = tab.locator(f"[data-rating={rating}]").bounding_box()
                assert (
                    box["y"] + box["height"] <= 800 and box["height"] >= 40 and box["width"] >= 80
                )
    unnamed = tab.evaluate("""[...document.querySelectorAll('button, input, textarea, progress')]
        .filter(e => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).map(e => e.id)""")
    assert not unnamed


# The least contrast of visible text against its ground, for each text of its own.
CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const over = (top, under) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * under[i]); };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest(':disabled, .away, option, kbd, script')) continue;
    let ground = parse(getComputedStyle(document.body).backgroundColor);
    const chain = []; for (let p = e; p !== document.body; p = p.parentElement) chain.unshift(p);
    for (const p of chain) ground = over(parse(getComputedStyle(p).backgroundColor), ground);
    const ink = over(parse(getComputedStyle(e).color), ground), [a, b] = [light(ink), light(ground)];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 80)]);
  }
  return found;
}"""


def test_a_rater_with_a_keyboard_alone_gets_everywhere(study, opened):
    tab = opened(study[2][0])
    enter(tab)
    tab.keyboard.press("Tab")
    seen = []
    for _ in range(14):
        seen.append(
            tab.evaluate("document.activeElement.id || document.activeElement.dataset.rating")
        )
        tab.keyboard.press("Tab")
    assert {"explanation", "No", "Maybe", "Yes", "next", "unrated", "switch"} <= set(seen)
    assert tab.get_attribute("#status", "aria-live") == "polite"
