"""Serves OpenAI's API in front of any model server; stores turns and feedback.

Owns the contract's routes, capture, linking, and moving an alias to a new adapter. Never trains, never imports torch,
never decides on a release.
"""

from afterword.gateway.app import make_app
from afterword.gateway.keys import create_key, list_keys, revoke_key
from afterword.gateway.server import run_gateway, serve_in_thread
from afterword.gateway.settings import GatewaySettings

__all__ = [
    "GatewaySettings",
    "create_key",
    "list_keys",
    "make_app",
    "revoke_key",
    "run_gateway",
    "serve_in_thread",
]
