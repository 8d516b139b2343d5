"""Checks the site that was built: every local link leads somewhere, and no page shows a slip.

    python docs/check_links.py docs/_build/html

Nothing is fetched. A slip is a picture without a text in its place, a page with several titles, or
what a cell printed beside its results: a traceback, a warning, a progress bar, an address.
Prints each, and exits with 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: What a cell's output should not hold.
RESIDUE = re.compile(r"Traceback|\w*Warning:|\d+%\||\d(?:it/s|s/it)| at 0x")


class Page(HTMLParser):
    """What one page links to, the anchors that it has, and what is wrong with it by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.slips: list[str] = []
        self.titles = 0
        self.depth = 0  # of elements inside a cell's output
        self.feed(text)
        if self.titles > 1:
            self.slips.append(f"{self.titles} titles")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name in ("id", "name"):
                self.anchors.add(value)
        given = dict(attrs)
        alt = given.get("alt") or ""
        if tag == "img" and (not alt or alt.startswith("../") or alt == given.get("src")):
            self.slips.append(f"no alt text: {given.get('src')}")
        self.titles += tag == "h1"
        if tag == "div" and (self.depth or "cell_output" in (given.get("class") or "").split()):
            self.depth += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self.depth:
            self.depth -= 1

    def handle_data(self, data: str) -> None:
        if self.depth and (found := RESIDUE.search(data)):
            self.slips.append(f"in an output: {found.group()!r}")


@cache
def read(path: Path) -> Page:
    return Page(path.read_text())


def broken(site: Path) -> list[str]:
    """The local links below `site` that lead nowhere, as "page: link"."""
    found = []
    for path in sorted(site.rglob("*.html")):
        for link in dict.fromkeys(read(path).links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            missing = not target.exists()
            if not missing and anchor and target.suffix == ".html":
                missing = anchor not in read(target).anchors
            if missing:
                found.append(f"{path.relative_to(site)}: {link}")
    return found


def slips(site: Path) -> list[str]:
    """What single pages below `site` show that they should not, as "page: what"."""
    return [
        f"{path.relative_to(site)}: {slip}"
        for path in sorted(site.rglob("*.html"))
        for slip in read(path).slips
    ]


def main() -> None:
    site = Path(sys.argv[1]).resolve()
    pages = len(list(site.rglob("*.html")))
    if not pages:
        raise SystemExit(f"There is no site in {site}.")
    found = broken(site)
    wrong = slips(site)
    print("\n".join([*found, *wrong]) + "\n" * bool(found or wrong), end="")
    print(f"{pages} pages, {len(found)} broken links, {len(wrong)} slips")
    raise SystemExit(bool(found or wrong))


if __name__ == "__main__":
    main()
