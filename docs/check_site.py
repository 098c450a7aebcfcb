"""Checks of the built site that Sphinx does not make: `python docs/check_site.py docs/_build/html`.

Every link within it leads somewhere, anchors included; nothing is loaded from elsewhere; formulas are drawn; and the
search finds what people look for.
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import snowballstemmer  # it comes with Sphinx, whose index has words by their stems

# A search for these words has to offer these pages.
SEARCHES = {
    "ignore_index": ("conventions", "from_pytorch", "api/categorical"),
    "label smoothing": ("conventions", "choosing", "api/categorical"),
    "focal": ("choosing", "api/focal"),
    "accumulation": ("scaling",),
}


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to by."""

    def __init__(self, path: Path) -> None:
        """Read it."""
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self.skipped = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag in ("script", "style", "pre", "code"):
            self.skipped += 1
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("script", "img", "source", "iframe") and given.get("src"):
            self.loads.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.append(given["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        """Leave what holds code."""
        if tag in ("script", "style", "pre", "code"):
            self.skipped -= 1

    def handle_data(self, data: str) -> None:
        """Text that is read as text."""
        if not self.skipped:
            self.text.append(data)


def problems(site: Path) -> list[str]:
    """Everything that is wrong."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: loads {url}" for url in page.loads if urlsplit(url).scheme in ("http", "https")]
        found += [f"{name}: {url} leads nowhere" for url in page.links + page.loads if not _leads(url, path, pages)]
        found += [f"{name}: a formula is not drawn"] if re.search(r"\$\$|\\frac|\\sum", "".join(page.text)) else []
    return found + _unfound(site)


def _leads(url: str, path: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(url)
    if parts.scheme or url in ("#", ""):
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target in pages and parts.fragment:
        return unquote(parts.fragment) in pages[target].anchors
    return target.exists()


def _unfound(site: Path) -> list[str]:
    """Searches that do not offer a page. The index has words by their stems."""
    index = json.loads(re.search(r"Search\.setIndex\((.*)\)", (site / "searchindex.js").read_text(), re.DOTALL)[1])
    names = [name.removesuffix(".md") for name in index["docnames"]]
    found = []
    for query, wanted in SEARCHES.items():
        places = [_places(index, word) for word in query.split()]
        offered = {names[number] for number in set.intersection(*places)}
        found += [f"a search for {query!r} does not offer {page}" for page in wanted if page not in offered]
    return found


def _places(index: dict, word: str) -> set[int]:
    """The pages that have a word, by its stem, as the search itself looks for it."""
    stem = snowballstemmer.stemmer("english").stemWord(word)
    found = (table.get(stem, []) for table in (index["terms"], index["titleterms"]))
    return {number for where in found for number in ([where] if isinstance(where, int) else where)}


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    wrong = problems(root)
    print("\n".join(wrong) or f"{len(list(root.rglob('*.html')))} pages: links, formulas and search are right")
    sys.exit(bool(wrong))
