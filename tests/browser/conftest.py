"""Chromium, and pages that must not use the network."""

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
class PageCheck:
    """A page with the list of its errors and network requests."""

    page: Any
    faults: list[str] = field(default_factory=list)


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """Return a function that opens a file; afterwards, check that pages reported no error and used no network."""
    checks: list[PageCheck] = []

    def open_(path: Path, **context: Any) -> Any:
        options = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "no-preference"} | context
        page = chromium.new_page(**options)
        check = PageCheck(page)
        checks.append(check)

        def on_request(request: Any) -> None:
            if request.url != path.as_uri() and not request.url.startswith("data:"):
                check.faults.append(f"request: {request.url[:200]}")

        def on_console(message: Any) -> None:
            check.faults.append(f"console: {message.text}")

        def on_dialog(dialog: Any) -> None:
            check.faults.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("request", on_request)
        page.on("console", on_console)
        page.on("pageerror", lambda error: check.faults.append(f"error: {error}"))
        page.on("dialog", on_dialog)
        page.goto(path.as_uri())
        return page

    yield open_
    for check in checks:
        check.page.close()
    assert [fault for check in checks for fault in check.faults] == []
