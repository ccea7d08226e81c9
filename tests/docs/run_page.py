"""Run every block of one page of the documentation, in order: `python run_page.py PAGE [--keep]`, in an empty folder.

    ```python           is run; all blocks of a page share a namespace. Its output, warnings and errors are compared with
                        the ```text block directly behind it, if there is one (`...` matches anything)
    ```console          each `$ command` is run; its output is compared with the lines below it, if there are any
    <!-- file: NAME -->   before a block: it is written to that file
    <!-- not run: WHY --> before a block: it is not run; the tests count these marks

In README.md, commands are in indented blocks: each line that begins with `xcam ` is run.
Images that the page shows and its blocks write are copied next to the page by `--keep`; the tests compare the two.
Each page runs in a separate process, so that its changes do not affect others.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from page_setups import README_NOT_RUN, namespace

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(\s*)(`{3,})\s*([^\s`]*)[^`]*$")
MARK = re.compile(r"^\s*<!-- (file|not run): (.+?) -->\s*$")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass
class Block:
    """A fenced block of a page."""

    kind: str
    text: str
    line: int
    file: str = ""
    not_run: str = ""
    output: str | None = None
    """The `text` block directly behind it."""


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order, and each line of an indented block that begins with `xcam `."""
    result: list[Block] = []
    mark: dict[str, str] = {}
    follows = False
    lines = iter(enumerate(page.splitlines(), 1))
    for number, line in lines:
        if match := MARK.match(line):
            mark[match[1]] = match[2]
        elif opened := FENCE.match(line):
            indent, fence, kind = opened.groups()
            inside = []
            for _, within in lines:
                if within.strip() == fence:
                    break
                inside.append(within.removeprefix(indent))
            text = "\n".join(inside) + "\n"
            if kind.startswith("{"):
                follows = False
                continue
            if kind == "text" and follows and result[-1].kind == "python":
                result[-1].output = text
            else:
                result.append(Block(kind, text, number, mark.get("file", ""), mark.get("not run", "")))
            mark, follows = {}, True
        elif line.startswith("    xcam "):
            command, _, _ = line.strip().partition("  #")
            why = README_NOT_RUN.get(command.strip(), "")
            result.append(Block("console", f"$ {command.strip()}\n", number, not_run=why))
            follows = False
        elif line.strip():
            mark, follows = {}, False
    return result


def images(page: Path, folder: Path) -> dict[Path, Path]:
    """Return the images next to the page that it shows, and for each the file in `folder` that its blocks wrote."""
    shown = re.findall(r"(?:```\{image\} |\]\()([\w.-]+\.(?:png|jpg))", page.read_text(encoding="utf-8"))
    return {page.parent / name: folder / name for name in shown if (folder / name).exists()}


class PageError(Exception):
    """The result of a block differs from the page."""


class Runner:
    """The namespace of one page, and the exit status of its last command."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = {"__name__": "__page__"} | namespace
        self.status = 0

    def run(self, block: Block) -> None:
        """Run a block.

        Raises:
            PageError: Its result differs from the page.
        """
        if block.not_run:
            return
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            self._python(block)
        elif block.kind == "console":
            for command, output in commands(block.text):
                self._command(command, output)

    def _python(self, block: Block) -> None:
        import xcam

        out = io.StringIO()
        code = compile("\n" * block.line + block.text, "page", "exec")  # errors have the page's line numbers
        with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", xcam.XcamWarning)
            try:
                exec(code, self.namespace)
            except xcam.XcamError as error:
                if block.output is None:
                    raise
                print(f"{type(error).__name__}: {error}")
        for warning in caught:
            if issubclass(warning.category, xcam.XcamWarning):
                out.write(f"{warning.category.__name__}: {warning.message}\n")
        if block.output is not None or "Warning: " in out.getvalue():
            compare(block.output or "", out.getvalue(), "the block")

    def _command(self, command: str, expected: str) -> None:
        if command == "echo $?":
            compare(expected, f"{self.status}\n", command)
            return
        arguments = shlex.split(command, comments=True)
        out = io.StringIO()
        if arguments[0] == "xcam":
            self.status = in_process(arguments[1:], out)
        else:
            if arguments[0] == "python":
                arguments[0] = sys.executable
            done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
            self.status = done.returncode
            out.write(done.stdout)
        if expected.strip():
            compare(expected, out.getvalue(), command)
        elif self.status:
            raise PageError(f"$ {command}\nstatus {self.status}\n{out.getvalue()}")


def in_process(arguments: list[str], out: io.StringIO) -> int:
    """Run `xcam ARGUMENTS` without a new process, and return the exit status."""
    from xcam_cli import main

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(arguments)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with the output that the page shows below it."""
    for part in re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command.strip(), output


def compare(expected: str, actual: str, source: str) -> None:
    """Compare the output on the page with the actual one; lines that consist of rules (─) are ignored.

    Raises:
        PageError: They differ.
    """
    checker = doctest.OutputChecker()
    wanted, got = (re.sub(r"^[─ ]+$\n?", "", text, flags=re.MULTILINE) for text in (expected, actual))
    if not checker.check_output(f"{wanted.strip()}\n", f"{got.strip()}\n", FLAGS):
        raise PageError(f"{source} printed\n{actual}\nbut the page shows\n{expected}")


def main(page: Path, folder: Path) -> int:
    """Run a page in a folder, and return 1 if a block fails, else 0."""
    os.chdir(folder)
    sys.path.insert(0, "")
    source = page.read_text(encoding="utf-8")
    runner = Runner(namespace(page.relative_to(ROOT).as_posix()))
    for block in blocks(source):
        try:
            runner.run(block)
        except Exception as error:
            print(f"{page.relative_to(ROOT)}, line {block.line}:\n{block.text}\n", file=sys.stderr)
            if isinstance(error, PageError):
                print(error, file=sys.stderr)
            else:
                traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    this = Path(sys.argv[1]).resolve()
    status = main(this, Path.cwd())
    if "--keep" in sys.argv and not status:
        for shown, written in images(this, Path.cwd()).items():
            shutil.copy(written, shown)
    sys.exit(status)
