"""Fit the pages to the site that mkdocs makes of them: what they link to outside of this folder.

Pictures there are taken along. The README is the start page, and the pages in `PAGES` have a place. All else is named
without a link, since the site knows no address of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages in the root of the repository, and what they are called on the site."""
_PICTURES = ("benchmarks/results/*.png",)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages and the pictures of measurements."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for pattern in _PICTURES:
        for picture in sorted(ROOT.glob(pattern)):
            name = picture.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links point to what is on the site, or take them away."""
    folder = ROOT if page.file.src_uri in PAGES.values() else (Path(config.docs_dir) / page.file.src_uri).parent

    def fit(link: re.Match[str]) -> str:
        bang, text, path, anchor = link.groups(default="")
        target = (folder / path).resolve()
        if not target.is_relative_to(ROOT):
            return link[0]
        name = _on_site(target.relative_to(ROOT).as_posix())
        if files.get_file_from_path(name) is None:
            return text
        up = "../" * page.file.src_uri.count("/")
        return f"{bang}[{text}]({up}{name}{'' if name == 'index.md' else anchor})"

    return _LINK.sub(fit, markdown)


def _on_site(path: str) -> str:
    """Return what a file of the repository would be called on the site."""
    if path == "README.md":
        return "index.md"
    return PAGES.get(path, path.removeprefix("docs/"))
