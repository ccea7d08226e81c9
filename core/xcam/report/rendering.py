"""Rendering a report: one HTML file without external resources, from a template and its content.

Names of files, labels and layers are not trusted. They reach the page only through Jinja2's autoescaping, and nothing is
ever marked as safe. The page's Content-Security-Policy names its one style and its one script by their hashes, so that
nothing else could run or be loaded even if a name were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xcam.contract import files
from xcam.errors import BackendError, InputError

SUFFIX = ".html"
STYLE, SCRIPT = "style.css", "script.js"


def check_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a report, if a report can be written there. Call it before the report is computed.

    Raises:
        InputError: The name does not end in .html, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX or "\0" in path.name:
        raise InputError(f"cannot write a report to {path}: its name does not end in {SUFFIX}; end it in {SUFFIX}")
    try:
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; choose another name")
        real = Path(os.path.realpath(path))
        if not os.access(real.parent, os.W_OK | os.X_OK):
            raise InputError(f"cannot write {path}: {real.parent} is write-protected; choose another folder")
        if real.exists() and not (real.is_file() and os.access(real, os.W_OK)):
            raise InputError(f"cannot write {path}: it is write-protected or not a file; choose another name")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}; choose another name") from error
    return path


def write(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a report. The file is written completely or not at all.

    Raises:
        InputError: The file cannot be written.
        BackendError: Jinja2 is not installed.
    """
    files.write_whole(check_path(path), render(template, content))


def render(template: str, content: Mapping[str, Any]) -> bytes:
    """Return the page in UTF-8. Raises BackendError where Jinja2 is not installed."""
    environment = _environment()
    hashes = {name: _hash(environment.get_template(name).render()) for name in (STYLE, SCRIPT)}
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{hashes[STYLE]}'; script-src '{hashes[SCRIPT]}'; base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template).render(policy=policy, version=version("xcam-explain"), **content)
    # A file name that is not UTF-8 contains lone surrogates, which cannot be encoded.
    return bytes(page.encode("utf-8", "replace"))


def render_part(template: str, content: Mapping[str, Any]) -> str:
    """Return a part of a page, for a notebook. Raises BackendError where Jinja2 is not installed."""
    return str(_environment().get_template(template).render(**content))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise BackendError(
            'cannot write a report: Jinja2 is not installed; run: pip install "xcam-explain[report]"'
        ) from error
    folder = resources.files("xcam.report").joinpath("templates")
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_CONTROL = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "�")


def _printable(value: Any) -> Any:
    """Replace control characters, which HTML does not allow."""
    return value.translate(_CONTROL) if type(value) is str else value
