"""Ask a model server for answers over HTTP and learn exactly which tokens and which adapter answered.

Owns the OpenAI-compatible client, vLLM's dialect of it (token ids, run-time adapters) and the start of the embedded
engine as a child process. Never imports torch, never touches the store.
"""

from afterword.sampling.launch import EngineProcess, start_engine
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
    "start_engine",
]
