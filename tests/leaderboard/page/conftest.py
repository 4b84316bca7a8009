"""A headless Chromium; tests that need it are skipped, with the reason, where it or playwright is missing."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install 't2eval[browser]')")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium, or say where it is with CHROMIUM=PATH)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens an address in a new page; at the end, no console message, no error, and no request but for the page itself may have come."""
    seen, pages = [], []

    def opened(address: str, *, width: int = 1200, height: int = 800, allowed: str = "", **options):
        page = chromium.new_page(viewport={"width": width, "height": height}, **options)
        page.on("console", lambda message: seen.append(("console", message.text)))
        page.on("pageerror", lambda error: seen.append(("error", str(error))))
        page.on("dialog", lambda dialog: seen.append(("dialog", dialog.message)))
        here = address.partition("#")[0]
        page.on("request", lambda request: seen.append(("request", request.url)) if request.url.partition("#")[0] != here else None)
        if allowed:
            page.on("request", lambda request: seen.remove(("request", request.url)) if request.url.startswith(allowed) else None)
        page.goto(address)
        page.wait_for_selector("body[data-ready][data-drawn]")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert [each for each in seen if not each[1].startswith("data:")] == []
