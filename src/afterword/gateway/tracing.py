"""OpenTelemetry traces of a turn: the request, the model server's answer, the write to the database.

Spans follow the gen_ai conventions and hold no word of anybody: names, counts, ids and times. A client's `traceparent`
is continued, and the model server gets one. Needs the extra `otel`; without `serve.traces` nothing is loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from afterword.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

SERVICE = "afterword"
_PATIENCE = 2.0
"""Seconds for the collector to take a batch; a stopping gateway waits as long."""


class Tracing:
    """Sends spans to a collector over OTLP/HTTP, in the background. A collector that is away costs spans, not answers.

    Args:
        url: Of the collector, without `/v1/traces`.

    Raises:
        ConfigError: The extra is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"serve.traces is {url!r}, which needs OpenTelemetry: pip install 'afterword[otel]'",
                param="serve.traces",
            ) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        exporter = OTLPSpanExporter(f"{url.rstrip('/')}/v1/traces", timeout=_PATIENCE)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)

    def begin(self, headers: Mapping[str, str], model: str, operation: str = "chat") -> TurnTrace:
        """Start the trace of a request.

        Args:
            headers: Of the request; `traceparent` names the client's span.
            model: Model name in the request.
            operation: As in the gen_ai conventions.
        """
        return TurnTrace(self._tracer, headers, model, operation)

    async def close(self) -> None:
        """Send what is left; waits a moment for the collector."""
        await asyncio.to_thread(self._provider.shutdown)


class TurnTrace:
    """The spans of one request."""

    def __init__(self, tracer: Tracer, headers: Mapping[str, str], model: str, operation: str) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, set_span_in_context

        self._tracer, self._kinds = tracer, SpanKind
        self._request = tracer.start_span(
            f"{operation} {model}",
            context=extract({name.lower(): value for name, value in headers.items()}),
            kind=SpanKind.SERVER,
            attributes={"gen_ai.operation.name": operation, "gen_ai.request.model": model},
        )
        self._context = set_span_in_context(self._request)
        self._asking: Span | None = None

    def asking(self, model: str, server: str) -> dict[str, str]:
        """The model server is asked.

        Args:
            model: Its name of the model.
            server: Its URL.

        Returns:
            Headers for the request to it.
        """
        from opentelemetry.propagate import inject
        from opentelemetry.trace import set_span_in_context

        self.answered()
        self._asking = self._tracer.start_span(
            f"chat {model}",
            context=self._context,
            kind=self._kinds.CLIENT,
            attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "server.address": server},
        )
        headers: dict[str, str] = {}
        inject(headers, context=set_span_in_context(self._asking))
        return headers

    def answered(self) -> None:
        """The model server's answer has ended."""
        if self._asking is not None:
            self._asking.end()
            self._asking = None

    def storing(self, turn: str, done: asyncio.Future[None] | None) -> None:
        """A turn waits for its commit.

        Args:
            turn: Its id.
            done: Done when it is on disk or lost; None when nothing is stored.
        """
        self._request.set_attribute("afterword.turn.id", turn)
        if done is not None:
            span = self._tracer.start_span("store turn", context=self._context, kind=self._kinds.INTERNAL)
            done.add_done_callback(lambda _: span.end())

    def end(self, *, status: int, adapter: str | None, usage: Mapping[str, Any], finish_reason: str | None) -> None:
        """The response has left.

        Args:
            status: HTTP status.
            adapter: The version that answered; None for the base model.
            usage: Token counts in OpenAI's names.
            finish_reason: Of the answer.
        """
        from opentelemetry.trace import StatusCode

        self.answered()
        self._request.set_attributes(
            {
                "http.response.status_code": status,
                "afterword.adapter": adapter or "base",
                "gen_ai.response.model": adapter or "base",
                **({"gen_ai.response.finish_reasons": [finish_reason]} if finish_reason else {}),
                **{
                    f"gen_ai.usage.{ours}": usage[theirs]
                    for ours, theirs in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"))
                    if isinstance(usage.get(theirs), int)
                },
            }
        )
        if status >= 500:
            self._request.set_status(StatusCode.ERROR)
        self._request.end()
