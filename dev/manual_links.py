"""Hooks of the manual's build: links that leave `docs/` become paths, and no page asks another host for a script."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with each link to a file outside the manual as `text (path)`."""
    here = posixpath.dirname(page.file.src_uri)

    def told(found: re.Match[str]) -> str:
        text, target, _anchor = found.groups()
        if "://" in target or target.startswith(("mailto:", "/")):
            return found[0]
        path = posixpath.normpath(posixpath.join("docs", here, target))
        return found[0] if path == "docs" or path.startswith("docs/") else f"{text} (`{path}`)"

    return _LINK.sub(told, markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """The page with the shim for search in local files from the manual itself, not from another host."""
    own = posixpath.relpath("assets/iframe-worker.js", posixpath.dirname(page.file.dest_uri) or ".")
    return re.sub(r"https://unpkg\.com/iframe-worker/shim", own, output)
