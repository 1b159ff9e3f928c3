# SPDX-License-Identifier: Apache-2.0
"""What mkdocs.yml cannot say: pages made of files outside docs/, and the reference of the API.

README.md, README.zh.md, CHANGELOG.md and CONTRIBUTING.md become pages, with their links as seen
from docs/. Links to files of the repository that are no page become their text: a site has no
source tree. Each folder of the package becomes one page of the reference, made from docstrings.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mindspeed_ms"
OUTSIDE = {
    "README.md": "index.md",
    "README.zh.md": "zh/index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""File of the repository -> page of the site."""
LEFT_OUT = ("core/config", "core/datasets", "legacy/data", "predecessor", "toolkit/compat")
"""Old import paths and stand-ins for other projects' modules."""
BADGES = re.compile(r"<!-- badges -->\n.*?\n\n", re.S)
IMAGE_OR_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def page_address(name: str, here: str) -> str:
    """Address of a file of the repository as a page at ``here`` links to it; empty: no page."""
    if name in OUTSIDE:
        target = OUTSIDE[name]
    elif name.startswith("docs/") and name.endswith((".md", ".png", ".svg")):
        target = name.removeprefix("docs/")
    else:
        return ""
    return posixpath.relpath(target, posixpath.dirname(here) or ".")


def with_links(text: str, folder: str, here: str) -> str:
    """Make a document's links those of the site.

    Args:
        text: the document.
        folder: where it lies in the repository, which its links start from.
        here: path of its page.
    """

    def changed(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups()
        name = posixpath.normpath(posixpath.join(folder, target))
        if not name.startswith("docs/") and not (ROOT / name).exists():
            LOG.warning("%s: %s is no file of the repository", here, target)
        address = page_address(name, here)
        return f"{picture}[{words}]({address}{anchor or ''})" if address else words

    return IMAGE_OR_LINK.sub(changed, text)


def api_pages() -> Iterator[tuple[list[str], str]]:
    """Path of every folder of the package below it, and the text of its page."""
    for folder, inside, names in os.walk(PACKAGE):
        inside[:] = sorted(name for name in inside if not name.startswith(("_", ".")))
        parts = list(Path(folder).relative_to(PACKAGE).parts)
        if "/".join(parts).startswith(LEFT_OUT):
            inside.clear()
            continue
        modules = sorted(
            name.removesuffix(".py")
            for name in names
            if name.endswith(".py") and not name.startswith("_")
        )
        if modules:
            title = ".".join(["mindspeed_ms", *parts])
            blocks = [
                f"## {name}\n\n::: {title}.{name}\n    options:\n      heading_level: 3\n"
                for name in modules
            ]
            yield parts, f"# {title}\n\n" + "\n".join(blocks)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for name, page in OUTSIDE.items():
        text = BADGES.sub("", (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=with_links(text, "", page)))
    entries: dict[str, list[dict[str, str]]] = {}
    for parts, text in api_pages() if config.extra.get("api", True) else ():
        page = f"api/{'/'.join(parts) or 'package'}.md"
        files.append(File.generated(config, page, content=text))
        room = parts[0] if parts else "mindspeed_ms"
        entries.setdefault(room, []).append({".".join(parts) or "mindspeed_ms": page})
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    more = [file.src_uri for file in files.documentation_pages() if file.src_uri not in named]
    more = [name for name in more if not name.startswith("api/")]
    if more and config.nav:
        config.nav.append({"More": more})
    for entry in config.nav or []:
        if isinstance(entry, dict) and "API" in entry:
            entry["API"] = [{room: pages} for room, pages in sorted(entries.items())]
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links of the documents to files of the repository that are no page."""
    here = page.file.src_uri
    if page.file.generated_by or here.startswith("api/"):
        return markdown
    return with_links(markdown, posixpath.join("docs", posixpath.dirname(here)), here)
