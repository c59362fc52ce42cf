"""Requests answers from a model server over HTTP, with sampled tokens and adapter names; starts the embedded engine.

Owns the OpenAI-compatible client and vLLM's additions to it (token ids, run-time adapters). Never imports torch, never
touches the store.
"""

from afterword.sampling.launch import EngineProcess, start_engine
from afterword.sampling.replicas import split_urls, upstream_of
from afterword.sampling.stream import Answer, ChatStream, Timeouts, UpstreamRejected
from afterword.sampling.upstream import NO_LIST, Upstream, complete_all

__all__ = [
    "NO_LIST",
    "Answer",
    "ChatStream",
    "EngineProcess",
    "Timeouts",
    "Upstream",
    "UpstreamRejected",
    "complete_all",
    "split_urls",
    "start_engine",
    "upstream_of",
]
