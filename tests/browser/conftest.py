"""A real browser, and pages in it that may ask nothing of any network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = "/usr/bin/chromium" if os.access("/usr/bin/chromium", os.X_OK) else shutil.which("chromium")
    if path is None:
        why = "no chromium: install it, for example with: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("Playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and what it did that it should not."""

    page: Any
    faults: list[str] = field(default_factory=list)


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """A function that opens a file; at the end, nothing may have been asked of the network, nor gone wrong."""
    all_opened: list[Opened] = []

    def open_(path: Path, **context: Any) -> Any:
        options = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "no-preference"} | context
        page = chromium.new_page(**options)
        this = Opened(page)
        all_opened.append(this)

        def asked(request: Any) -> None:
            if request.url != path.as_uri() and not request.url.startswith("data:"):
                this.faults.append(f"request: {request.url[:200]}")

        def spoke(message: Any) -> None:
            this.faults.append(f"console: {message.text}")

        def popped(dialog: Any) -> None:
            this.faults.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("request", asked)
        page.on("console", spoke)
        page.on("pageerror", lambda error: this.faults.append(f"error: {error}"))
        page.on("dialog", popped)
        page.goto(path.as_uri())
        return page

    yield open_
    for this in all_opened:
        this.page.close()
    assert [fault for this in all_opened for fault in this.faults] == []
