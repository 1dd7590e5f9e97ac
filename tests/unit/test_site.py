"""The documentation as a site: every page has a place, every link leads somewhere, and nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


class Fetched(HTMLParser):
    """Collects what a page makes a browser fetch from other addresses."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            fetched = (value or "" for name, value in attrs if name in ("href", "src", "srcset"))
            self.addresses += [value for value in fetched if re.match(r"(https?:)?//", value)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: pages without a place and links that lead nowhere are errors."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    names = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} | {"changelog", "contributing"}
    assert all((site / name / "index.html").is_file() for name in names)
    assert (site / "index.html").is_file()


def test_pictures_of_measurements_are_taken_along(site: Path) -> None:
    page = (site / "performance" / "index.html").read_text()
    pictures = re.findall(r'<img [^>]*src="([^"]+)"', page)
    assert pictures
    assert all((site / "performance" / picture).resolve().is_file() for picture in pictures)


def test_nothing_comes_from_another_address(site: Path) -> None:
    fetched = {page.name: Fetched(page).addresses for page in site.rglob("*.html")}
    assert not any(fetched.values()), fetched
