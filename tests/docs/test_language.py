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
#: What to say: what not to say, in a page's own words.
BANNED = {
    "classify, evaluate, predict": r"\btold\b|\btells? (?:right|wrong|apart|which|whether)\b",
    "explain, predict": r"\btells? (?:little|much|nothing|next)\b|\bforet(?:ells?|old)\b",
    "noise sample": r"\b(?:one|each|a|many|more|fewer|of|two|\d+) draws?\b(?! (?:the|a|an)\b)",
    "recompute": r"\bdraw(?:s|n)? (?:the noise )?(?:again|anew)\b|\bstored never\b",
    "advantage": r"\bweights? of (?:a|the|each|every) rows?\b",
    "membrane update, credit": r"\bcharge[sd]?\b",
    "per-step loss": r"\bcausal (?:credit|loss)",
    "memory budget": r"\b(?:is|no|enough|the) room\b(?! (?:for|between))",
    "presynaptic trace": r"\bsynapses? remember|\bmembranes? (?:that )?remembers?\b",
    "variance reduction": r"\bsharper\b|\bsharpen",
    "control variate": r"\bsettling\b|\bsettles? (?:a|the) (?:membrane|noise|loss)",
    "accumulate gradients": r"\bgather(?:s|ed|ing)?\b",
    "packed spikes": r"\bemit(?:s|ted)?\b",
    "stale state": r"\bleft-?overs?\b|\bmembranes? that (?:is|are) left over\b",
    "atomic": r"\ball or (?:nothing|none)\b",
    "trained with": r"\btrained by\b",
    "mean-subtracted": r"\bless (?:their|its|the) (?:own )?mean\b",
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def words(text: str) -> str:
    """All that a reader reads on a page: prose, tables, headings and captions, but no code."""
    text = re.sub(r"\A---\n.*?^---\n|^(`{3,}).*?^\1", "", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->|\$\$.*?\$\$", "", text, flags=re.S)
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "code", text)
    return " ".join(text.split())


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
    assert mean_length(PAGES) <= 13
    assert mean_length(PAGES[:1]) <= 14


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_has_long_sentences(page: Path) -> None:
    assert mean_length([page]) <= 16
    assert not [each for each in sentences(page.read_text()) if len(each.split()) > 40]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_says_it_in_the_words_of_the_field(page: Path) -> None:
    text = words(page.read_text())
    for say, banned in BANNED.items():
        found = [text[max(0, m.start() - 30) : m.end() + 30] for m in re.finditer(banned, text)]
        assert not found, f"say {say!r}: {found}"


@pytest.mark.parametrize(
    "text",
    [
        "This tells glibc to keep what is freed.",
        "`learner.told` is code, and so is [a link](all_or_nothing.md).",
        "A test draws the graph, and each draws a current of its own.",
        "The three settle at 5%.",
        "The weight of the residual, and the rest of the room between them.",
    ],
)
def test_what_is_right_is_not_banned(text: str) -> None:
    assert not [say for say, banned in BANNED.items() if re.search(banned, words(text))]


def test_what_is_banned_is_found() -> None:
    text = "An image is told wrong by one draw, all or nothing, with images less their mean."
    found = {say for say, banned in BANNED.items() if re.search(banned, words(text))}
    assert found == {"classify, evaluate, predict", "noise sample", "atomic", "mean-subtracted"}


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
