"""The built documentation: no warnings, no framework needed, and no broken links."""

from __future__ import annotations

import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import xcam
from xcam_cli.app import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("keras", "tensorflow", "torch", "jax", "onnx", "onnxruntime")
BUILD = f"""
import sys
sys.modules.update(dict.fromkeys({FRAMEWORKS}))  # None: importing one is an ImportError
from sphinx.cmd.build import main
sys.exit(main(["-W", "--keep-going", "-n", "-q", "-E", "-b", "html", *sys.argv[1:]]))
"""


@dataclass
class Page(HTMLParser):
    """The links of a page, the files that it loads, its anchors, and its text."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    nameless: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif "src" in values or (tag == "link" and values.get("rel") in ("stylesheet", "icon")):
            self.loads.append(values.get("src") or values["href"])
        if tag == "img" and not values.get("alt"):
            self.nameless.append(values.get("src", ""))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", BUILD, "-d", str(out / "trees"), str(ROOT / "docs"), str(out / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return out / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    result = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(result) > 15
    return result


def test_links_within_the_site_are_not_broken(pages: dict[Path, Page]) -> None:
    lost = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            linked = pages.get(target)
            if not target.is_file() or (parts.fragment and linked and unquote(parts.fragment) not in linked.ids):
                lost.append(f"{path.name}: {link}")
    assert lost == []


def test_nothing_is_loaded_from_other_sites(pages: dict[Path, Page]) -> None:
    far = {load for page in pages.values() for load in page.loads if urlsplit(load).netloc}
    assert far == set()


def test_links_to_other_sites_are_https(pages: dict[Path, Page]) -> None:
    """`make linkcheck` also checks that they exist."""
    far = {urlsplit(link) for page in pages.values() for link in page.links if urlsplit(link).netloc}
    assert {parts.scheme for parts in far} <= {"https"}, far


def test_every_image_has_a_text(pages: dict[Path, Page]) -> None:
    assert {name for page in pages.values() for name in page.nameless} == set()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert {name for name in xcam.__all__ if f"xcam.{name}" not in known} == set()


def test_the_command_reference_has_every_subcommand_and_option(site: Path, pages: dict[Path, Page]) -> None:
    text = "".join(pages[site / "reference" / "command.html"].texts)
    missing = []
    for name, command in app.commands.items():
        start = text.find(f"xcam {name} [OPTIONS]")
        if start < 0:
            missing.append(name)
        stop = min(
            (p for p in (text.find(f"xcam {n} [OPTIONS]", start + 1) for n in app.commands) if p > 0), default=-1
        )
        part = text[start:stop]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                missing += [f"{name} {option}" for option in parameter.opts if option not in part]
    assert missing == []


def test_the_tables_have_every_method_measure_and_preset(site: Path, pages: dict[Path, Page]) -> None:
    texts = pages[site / "reference" / "methods.html"].texts
    assert {name for name in xcam.list_methods() if name not in texts} == set()
    texts = pages[site / "reference" / "api.html"].texts
    assert {name for name in xcam.list_measures() if name not in texts} == set()
    assert {name for name in ("caffe", "tf", "torch", "unit", "raw") if name not in texts} == set()
