"""Words and names that the project does not use, in code, messages and pages.

CONTRIBUTING.md states the rules. Some of them can be checked mechanically: the lists below name words and phrases, with
the usual remedy, and names that a variable must not have. Run on paths, the file prints the matches:

    python tests/docs/test_language.py core/xcam/methods README.md
"""

from __future__ import annotations

import ast
import bisect
import io
import itertools
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = (
    *("core", "backends", "cli", "examples", "docs", "tests", "benchmarks", ".github", ".ci"),
    *(
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "Makefile",
        "pyproject.toml",
    ),
)
# List the words themselves.
EXEMPT = {"tests/docs/test_language.py", "CONTRIBUTING.md"}

# Regular expressions for a paragraph in one line (case is ignored), with the remedy.
PHRASES = {
    r"\b(?:is|are|was|were|be) no\b(?! longer| more than| less than| fewer than)": "'is not a …', 'does not exist'",
    r"\b(?:has|have|had) no (?:word|way|say)\b": "'cannot …'",
    r"^\W*(?-i:What) (?!.*\?)|(?<=[.] )(?-i:What) (?![^.]*\?)"
    r"|\b(?:of|from|than|on|to|with|in|for|as|by|at|that|behind|like) what\b"
    r"|\bwhat (?:an?|its|their)\b|\bwhat (?:the )?\w+ (?:says?|said|tells?|told|asks?|asked|makes?|made|gives?|gave)\b"
    r"|\bwhat (?:passes|follows|comes|came|makes|made|stands|stood|speaks|holds|installs|tells|fails)\b": (
        "a noun, or begin with a verb, instead of 'what …'"
    ),
    r"\bsaid\b": "'stated', 'reported', 'printed', or the noun",
    r"\btold\b": "'given', 'informed', 'distinguished'",
    r"\b(?:was|were|is|are) found to\b": "the fact, or who measured it",
    r"\bbesides?\b": "'next to', 'in addition to', 'except'; for tensors: 'bypass'",
    r"\b(?:held|holds?|holding) against\b": "'compared with'",
    r"\bso many\b": "'that many', 'too many', or the number",
    r"\banew\b": "'again'",
    r"\b(?:go|goes|going|gone|went) on\b": "'continue'",
    r"\bwho(?:so)?ever\b": "'users who', 'the caller'",
    r"\b(?:speaks?|spoke|spoken)\b": "'support', 'suggest', 'contradict'",
    r"\bof one mind\b": "'consistent'",
    r"\bsays? (?:so|of|it itself|nothing|anything|itself)\b": "'report' or 'state', with its object",
    r"\bwithout a word\b": "'silently', 'without a warning'",
    r"\b(?:stands?|stood)\b(?! out\b|-)": "'is', 'is at', 'means', 'replaces'",
    r"\bby itself\b": "'alone', 'separately', 'automatically'",
    r"(?<![\w/.-])pictures?\b(?![\w/]|\.\w)": "'image'",
    r"(?<![\w/.-])photos?\b(?![\w/]|\.\w)": "'image'",
    r"\bwords\b|\b(?:a|own|no|wrong|unknown) word\b": "'text', 'options', 'names', 'arguments'",
    r"(?<!\bin )(?<!\btake )(?<!\btakes )(?<!\btook )(?<!\bdecimal )(?<!look at the same )(?<!looks at the same )"
    r"(?<![\w/.-])places?\b(?![\w/]|\.\w)": "'path', 'position', 'index', 'location', 'rank'",
    r"\bculprits?\b": "'divergence', 'cause'",
    r"\bfrontiers?\b": "'bypass values', 'cut'",
    r"\bmanners\b": "'side effects'",
}
# Names of variables, parameters and fields that say nothing about the value.
VARIABLES = {
    **dict.fromkeys(
        ("found", "said", "told", "made", "given", "each_one", "own", "how", "what"), "a noun: result, …"
    ),
    "place": "path, index, position, location",
    "word": "name, option, text, token",
    "words": "names, options, text, tokens",
    "picture": "image",
    "pictures": "images",
    "beside": "bypass",
    "frontier": "bypass",
}
# Names of functions and classes that were replaced.
RENAMED = {
    "Supply": "MethodContext",
    "Sketch": "LayerSample",
    "Site": "LayerMismatch",
    "Compared": "ImageComparison",
    "culprit": "divergence",
    "manners": "side_effects",
    "judging": "assertions",
    "share_cores": "disable_spinning",
    "weighted": "parameter_layers",
    "randomized": "with_shuffled_weights",
    "absent": "explain_missing_layer",
}
SUFFIXES = {".py", ".md", ".html", ".jinja", ".toml", ".yml", ".yaml", ".cff", ".csv"}
_PHRASES = [(re.compile(phrase, re.IGNORECASE), remedy) for phrase, remedy in PHRASES.items()]


class Hit(NamedTuple):
    """A match: its line, the words or the name, and the remedy."""

    line: int
    text: str
    remedy: str


def in_prose(text: str, line: int = 1) -> Iterator[Hit]:
    """Yield the forbidden phrases of a text that begins on `line`."""
    text = re.sub(r"^[ \t]+$", "", text, flags=re.MULTILINE)
    for paragraph in re.finditer(r"(?:.+\n?)+", text):
        # Matches may cross a line break; the lines of the words are kept.
        words = [(word, number) for number, row in enumerate(paragraph[0].split("\n")) for word in row.split()]
        ends = list(itertools.accumulate(len(word) + 1 for word, _ in words))
        flat = " ".join(word for word, _ in words)
        above = text.count("\n", 0, paragraph.start())
        for pattern, remedy in _PHRASES:
            for match in pattern.finditer(flat):
                first = words[bisect.bisect_right(ends, match.start())]
                yield Hit(line + above + first[1], match[0].strip(), remedy)


def in_python(source: str, line: int = 1) -> Iterator[Hit]:
    """Yield the forbidden phrases in docstrings, strings, comments and names of tests, and the forbidden names."""
    tree = ast.parse(source)
    for first, text in [*_strings(tree), *_comments(source)]:
        if " " in text.strip():  # otherwise a key, a path or an option
            yield from in_prose(text, first + line - 1)
    for first, name in _variables(tree):
        if name in VARIABLES:
            yield Hit(first + line - 1, name, VARIABLES[name])
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name in RENAMED:
                yield Hit(node.lineno + line - 1, node.name, RENAMED[node.name])
            if node.name.startswith("test_"):
                yield from in_prose(node.name.replace("_", " "), node.lineno + line - 1)


def _strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield strings; in an f-string, `{}` replaces the expressions."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield comments, with those on consecutive lines joined."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and token.start[0] != last + 1:
            yield first, "\n".join(block)
            block = []
        if not block:
            first = token.start[0]
        last = token.start[0]
        block.append(token.string.lstrip("#! "))
    if block:
        yield first, "\n".join(block)


def _variables(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield names that are bound: variables, attributes, parameters, loop variables; imports and functions are not."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name


def in_markdown(source: str) -> Iterator[Hit]:
    """Yield the hits in the prose of a page and in its blocks of Python; other blocks and inline code are left out."""
    fences = re.compile(r"^([ \t]*)(```+)([^\n]*)\n(.*?)^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
    for fence in fences.finditer(source):
        if fence[3].strip() in ("python", "py"):
            body = re.sub(rf"^{fence[1]}", "", fence[4], flags=re.MULTILINE)
            try:
                yield from in_python(body, source.count("\n", 0, fence.start(4)) + 1)
            except SyntaxError:  # an excerpt
                yield from in_prose(body, source.count("\n", 0, fence.start(4)) + 1)
    prose = fences.sub(_blank, source)
    for code in (r"`+[^`]+`+", r"\]\([^)]*\)", r"<(?!!--)[^>]*>", r"https?://\S+", r"^\|[ :|-]+\|$"):
        prose = re.sub(code, _blank, prose, flags=re.MULTILINE)
    yield from in_prose(prose)


def in_template(source: str) -> Iterator[Hit]:
    """Yield the hits in the text of an HTML page or a Jinja template, without tags, scripts, styles and expressions."""
    for code in (r"<(script|style)\b.*?</\1>", r"\{\{.*?\}\}", r"\{%.*?%\}", r"<[^>]*>"):
        source = re.sub(code, _blank, source, flags=re.DOTALL)
    yield from in_prose(source)


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def hits(path: Path) -> list[Hit]:
    """Return the hits in a file, in order of their lines."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        result = in_python(source)
    elif path.suffix == ".md":
        result = in_markdown(source)
    elif path.suffix in (".html", ".jinja"):
        result = in_template(source)
    else:
        result = in_prose(source)
    return sorted(set(result))


def files(path: Path) -> Iterator[Path]:
    """Yield a file, or the text files of a folder."""
    if path.is_file():
        yield path
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        hidden = any(part in ("build", "dist", "__pycache__") or part.endswith(".egg-info") for part in file.parts)
        if file.is_file() and file.suffix in SUFFIXES and not hidden:
            yield file


def test_no_file_has_a_forbidden_phrase_or_name() -> None:
    names = [file.relative_to(ROOT).as_posix() for entry in CHECKED for file in files(ROOT / entry)]
    assert len(names) > 200
    assert set(names) > EXEMPT
    lines = [
        f"{name}:{hit.line}: {hit.text!r}: {hit.remedy}"
        for name in names
        if name not in EXEMPT
        for hit in hits(ROOT / name)
    ]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The value is no\nnumber.", [(1, "is no")]),
        ("It is no longer used, and no more than 3 are kept.", []),
        ("A. What the model sees.", [(1, "What")]),
        ("What is new? Nothing.", []),
        ("Say what is wrong.", []),
        ("\n\nThe class of what a model returned", [(3, "of what")]),
        ("The picture goes\non in docs/pictures/a.png and pictures.py.", [(1, "picture"), (1, "goes on")]),
        ("It is replaced in place, takes place, to two decimal places.", []),
        ("the only place", [(1, "place")]),
        ("A standard stand-in; layers stand before it; they stand out.", [(1, "stand")]),
        ("cannot read a.jpg: no such file; check the path", []),
    ],
)
def test_phrases(text: str, expected: list[tuple[int, str]]) -> None:
    assert sorted((hit.line, hit.text) for hit in in_prose(text)) == sorted(expected)


def test_python_is_read_with_its_names_strings_and_comments() -> None:
    source = '''"""Said first."""
import told
def f(made, size):
    """Return
    what a model returned."""
    found = {"picture": size}  # whatever goes
    # on here
    raise ValueError(f"{found} is no size")
def test_that_is_of_one_mind(): ...
class Supply: ...
'''
    assert sorted((hit.line, hit.text) for hit in in_python(source)) == [
        *((1, "Said"), (3, "made"), (5, "what a"), (6, "found"), (6, "goes on")),
        *((8, "is no"), (9, "of one mind"), (10, "Supply")),
    ]


def test_code_on_a_page_is_not_prose() -> None:
    source = (
        "`anew` and [a](pictures/told.png)\n```console\n$ xcam anew\n```\n```python\nx = 1\nfound = 2\n```\n\nanew\n"
    )
    assert [(hit.line, hit.text) for hit in in_markdown(source)] == [(7, "found"), (10, "anew")]


def test_a_template_is_read_without_tags_and_expressions() -> None:
    source = (
        '<p class="picture words">{{ picture.words }}\n{% if words %}so many{% endif %}</p><style>picture</style>'
    )
    assert [(hit.line, hit.text) for hit in in_template(source)] == [(2, "so many")]


def main(paths: list[str]) -> int:
    """Print the hits in the given files and folders; return 1 where there are any."""
    count = 0
    for path in paths or CHECKED:
        for file in files(Path(path)):
            if not file.resolve().as_posix().endswith(tuple(EXEMPT)):
                for hit in hits(file):
                    print(f"{file}:{hit.line}: {hit.text!r}: {hit.remedy}")
                    count += 1
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
