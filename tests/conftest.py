"""One browser for all tests that open a page."""

import os
import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    """Chromium, as Playwright drives it; skips where there is none, fails where CI lacks it."""
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs chromium")
        pytest.skip("no Chromium on this machine: no page was opened in a browser")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()
