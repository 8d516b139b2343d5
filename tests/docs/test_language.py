"""The pages are written in short sentences and in the field's words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(
        p
        for p in (ROOT / "docs").rglob("*.md")
        if not {"_build", "results", "benchmarks", "api"} & set(p.parts)
    ),
]


def sentences(text: str) -> list[str]:
    """The sentences of a page's prose: no code, formulas, tables, headings, captions or links."""
    text = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.M | re.S)
    text = re.sub(r"^(`{3,}|:{3,}).*?^\1", "", text, flags=re.M | re.S)
    text = re.sub(r"\$\$.*?\$\$|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"^( {4,}\S|\||#|%|!\[|\(\S+\)=).*$", "", text, flags=re.M)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`|\$[^$]*\$", "code", text)
    text = re.sub(r"[*_]", "", text)
    found = []
    for paragraph in re.split(r"\n\s*\n|^\s*(?:[-+]|\d+\.) ", text, flags=re.M):
        found += re.split(r"(?<=[.!?:])\s+(?=[A-Z\"(]|code)", " ".join(paragraph.split()))
    return [each for each in found if len(each.split()) > 2]


def mean_length(pages: list[Path]) -> float:
    lengths = [len(s.split()) for page in pages for s in sentences(page.read_text())]
    return sum(lengths) / len(lengths)


def test_sentences_are_short() -> None:
    assert mean_length(PAGES) <= 17
    assert mean_length(PAGES[:1]) <= 14


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One is here. `code` is two of it.", 2),
        ("- an item of four\n- another item of four\n", 2),
        ("| a | table of words |\n\n# A heading of words\n\n    code of four words\n", 0),
        ("```python\nx = 1 + 2 + 3\n```\n\nA sentence with [a link](x.md) in it.", 1),
    ],
)
def test_what_a_sentence_is(text: str, found: int) -> None:
    assert len(sentences(text)) == found
