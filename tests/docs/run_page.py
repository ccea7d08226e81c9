"""Run every block of one page of the documentation, in order: `python run_page.py PAGE [--keep]`, in an empty folder.

    ```python           run, all of a page in one namespace; what it prints, warns or raises is what a ```text block
                        directly behind it says, where there is one (`...` stands for anything)
    ```console          each `$ command` is run; what it says is compared, where something is shown
    <!-- file: NAME --> ahead of a block: it is written to that file
    <!-- not run: WHY --> ahead of a block: it is not run; the tests count these

README.md's commands stand in indented blocks: a line that begins with `xcam ` is run.
Pictures that the page shows and its blocks write are copied beside it by `--keep`; the tests hold them against each other.
A page's process is its own, so that what it registers or changes is gone with it.
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
    said: str | None = None
    """The `text` block directly behind it."""


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page's source, in order; in indented blocks, lines that begin with `xcam `."""
    found: list[Block] = []
    mark: dict[str, str] = {}
    follows = False
    lines = iter(enumerate(page.splitlines(), 1))
    for number, line in lines:
        if told := MARK.match(line):
            mark[told[1]] = told[2]
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
            if kind == "text" and follows and found[-1].kind == "python":
                found[-1].said = text
            else:
                found.append(Block(kind, text, number, mark.get("file", ""), mark.get("not run", "")))
            mark, follows = {}, True
        elif line.startswith("    xcam "):
            command, _, _ = line.strip().partition("  #")
            why = README_NOT_RUN.get(command.strip(), "")
            found.append(Block("console", f"$ {command.strip()}\n", number, not_run=why))
            follows = False
        elif line.strip():
            mark, follows = {}, False
    return found


def pictures(page: Path, folder: Path) -> dict[Path, Path]:
    """Pictures beside the page that it shows, and for each the file in `folder` that its blocks wrote."""
    shown = re.findall(r"(?:```\{image\} |\]\()([\w.-]+\.(?:png|jpg))", page.read_text(encoding="utf-8"))
    return {page.parent / name: folder / name for name in shown if (folder / name).exists()}


class PageError(Exception):
    """A block did not do what the page says."""


class Runner:
    """One page's namespace, and what its last command returned."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = {"__name__": "__page__"} | namespace
        self.status = 0

    def run(self, block: Block) -> None:
        """Raises PageError."""
        if block.not_run:
            return
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            self._python(block)
        elif block.kind == "console":
            for command, said in commands(block.text):
                self._command(command, said)

    def _python(self, block: Block) -> None:
        import xcam

        out = io.StringIO()
        code = compile("\n" * block.line + block.text, "page", "exec")  # errors name the page's own lines
        with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", xcam.XcamWarning)
            try:
                exec(code, self.namespace)
            except xcam.XcamError as error:
                if block.said is None:
                    raise
                print(f"{type(error).__name__}: {error}")
        for warning in caught:
            if issubclass(warning.category, xcam.XcamWarning):
                out.write(f"{warning.category.__name__}: {warning.message}\n")
        if block.said is not None or "Warning: " in out.getvalue():
            compare(block.said or "", out.getvalue(), "the block")

    def _command(self, command: str, said: str) -> None:
        if command == "echo $?":
            compare(said, f"{self.status}\n", command)
            return
        words = shlex.split(command, comments=True)
        out = io.StringIO()
        if words[0] == "xcam":
            self.status = in_process(words[1:], out)
        else:
            if words[0] == "python":
                words[0] = sys.executable
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
            self.status = done.returncode
            out.write(done.stdout)
        if said.strip():
            compare(said, out.getvalue(), command)
        elif self.status:
            raise PageError(f"$ {command}\nstatus {self.status}\n{out.getvalue()}")


def in_process(words: list[str], out: io.StringIO) -> int:
    """`xcam WORDS` without a new process; its status."""
    from xcam_cli import main

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(words)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what is shown below it."""
    for part in re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        command, _, said = part.partition("\n")
        yield command.strip(), said


def compare(said: str, out: str, what: str) -> None:
    """Raises PageError where what is shown and what came differ; lines that are only rules do not count."""
    checker = doctest.OutputChecker()
    wanted, got = (re.sub(r"^[─ ]+$\n?", "", text, flags=re.MULTILINE) for text in (said, out))
    if not checker.check_output(f"{wanted.strip()}\n", f"{got.strip()}\n", FLAGS):
        raise PageError(f"{what} said\n{out}\nwhere the page shows\n{said}")


def main(page: Path, folder: Path) -> int:
    """Status 1 where a block fails."""
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
        for place, file in pictures(this, Path.cwd()).items():
            shutil.copy(file, place)
    sys.exit(status)
