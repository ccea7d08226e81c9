"""The report: one HTML file that shows and explains itself, and asks nothing of any network.

Names of files, labels and layers come from outside. They reach the page only through Jinja2's autoescaping; nothing is
ever marked as safe. The page's Content-Security-Policy names its one style and its one script by their hashes, so that
nothing else could run or be fetched even if a name got through.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xcam.comparison.result import Comparison
from xcam.contract import files
from xcam.errors import BackendError, InputError
from xcam.explanation.result import Explanation

SUFFIX = ".html"
STYLE, SCRIPT = "style.css", "script.js"


def write(comparison: Comparison, path: Path) -> None:
    """Write the report on several models. The file appears whole or not at all.

    Raises InputError for a place that cannot be written, BackendError where Jinja2 is not installed.
    """
    place = check_place(path)
    environment = _environment()
    from xcam.comparison.page import comparison_page

    _write(place, environment, "comparison.html", comparison_page(comparison))


def write_single(explanations: Sequence[Explanation], path: Path) -> None:
    """Write the report on explanations of one model or more, a tab for each class, method or layer of a picture.

    Raises InputError, BackendError.
    """
    if not explanations:
        raise InputError("there is nothing to report; give one explanation or more")
    place = check_place(path)
    environment = _environment()
    from xcam.comparison.page import single_page

    _write(place, environment, "single.html", single_page(explanations))


def check_place(path: str | os.PathLike[str]) -> Path:
    """Where a report can be written. Raises InputError: call it before the work that the report is about."""
    place = Path(path)
    if place.suffix.lower() != SUFFIX or "\0" in place.name:
        raise InputError(f"{place} is no name for a report; end it in {SUFFIX}")
    try:
        if not place.parent.is_dir():
            raise InputError(f"cannot write {place}: there is no folder {place.parent}; make it first")
        if place.is_dir():
            raise InputError(f"cannot write {place}: it is a folder; choose another name")
        real = Path(os.path.realpath(place))
        if not os.access(real.parent, os.W_OK | os.X_OK):
            raise InputError(f"cannot write {place}: {real.parent} is write-protected; choose another place")
        if real.exists() and not (real.is_file() and os.access(real, os.W_OK)):
            raise InputError(f"cannot write {place}: it is write-protected, or no ordinary file; choose another name")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {place}: {error}; choose another name") from error
    return place


def _write(place: Path, environment: Any, template: str, content: dict[str, Any]) -> None:
    files.write_whole(place, _rendered(environment, template, content))


def _rendered(environment: Any, template: str, content: dict[str, Any]) -> bytes:
    hashes = {name: _hash(environment.get_template(name).render()) for name in (STYLE, SCRIPT)}
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{hashes[STYLE]}'; script-src '{hashes[SCRIPT]}'; base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template).render(policy=policy, version=version("xcam-explain"), **content)
    # A file name that is no UTF-8 holds lone surrogates, which cannot be written.
    return bytes(page.encode("utf-8", "replace"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise BackendError(
            'the report needs Jinja2, which is not installed; run: pip install "xcam-explain[report]"'
        ) from error
    folder = resources.files("xcam.report").joinpath("templates")
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_CONTROL = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "�")


def _visible(value: Any) -> Any:
    """Control characters in a name shown as such: HTML has no place for them."""
    return value.translate(_CONTROL) if type(value) is str else value
