"""Checks every local link of the site that was built: the file is there, and so is the anchor.

    python docs/check_links.py docs/_build/html

Nothing is fetched. Prints each link that leads nowhere, and exits with 1 if there is one.
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What one page links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name in ("id", "name"):
                self.anchors.add(value)


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


def main() -> None:
    site = Path(sys.argv[1]).resolve()
    pages = len(list(site.rglob("*.html")))
    if not pages:
        raise SystemExit(f"There is no site in {site}.")
    found = broken(site)
    print("\n".join([*found, f"{pages} pages, {len(found)} broken links"]))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
