"""The table of bridges: name -> how its source is made. Add a bridge: one module, one line here, one guide."""

from __future__ import annotations

from collections.abc import Callable

from afterword.feedback.bridges.bridge import BridgeSource
from afterword.feedback.bridges.open_webui import OpenWebUI

BRIDGES: dict[str, Callable[[str, str], BridgeSource]] = {
    OpenWebUI.name: OpenWebUI,
}
"""Name -> source of (url, token)."""
URLS: dict[str, str] = {OpenWebUI.name: "http://127.0.0.1:8080"}
"""Where each usually listens."""
