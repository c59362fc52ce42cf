"""Traces of a turn, sent by OpenTelemetry's own exporter to a collector of this test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch

SECRET = "my secret words"


@dataclass
class Collector:
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found |= {f"{span.kind} {span.name}": span for span in scope.spans}
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    held = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            held.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield held
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def values(span: Any) -> dict[str, Any]:
    """A span's attributes."""
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value"))
        for one in span.attributes
        if one.value.WhichOneof("value") != "array_value"
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_is_one_trace_without_words(launch: Launch, collector: Collector, stream: bool) -> None:
    fake = Fake()
    gateway = launch(fake, traces=collector.url + "/")
    trace = "0af7651916cd43dd8448eb211c80319c"
    response = gateway.post(
        "/v1/chat/completions",
        {"model": "afterword", "messages": [{"role": "user", "content": SECRET}], "stream": stream},
        headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"},
    )
    assert response.status_code == 200
    until(lambda: len(collector.spans()) == 3)
    spans = collector.spans()
    assert set(spans) == {"2 chat afterword", "3 chat base-model", "1 store turn"}
    request, asked, stored = spans["2 chat afterword"], spans["3 chat base-model"], spans["1 store turn"]
    assert {one.trace_id.hex() for one in spans.values()} == {trace}
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert asked.parent_span_id == stored.parent_span_id == request.span_id
    assert fake.traceparents[-1] == f"00-{trace}-{asked.span_id.hex()}-01"
    told = values(request)
    assert told["gen_ai.request.model"] == "afterword" and told["afterword.adapter"] == "base"
    assert told["http.response.status_code"] == 200 and told["gen_ai.usage.input_tokens"] == 3
    assert told["afterword.turn.id"] == response.headers["x-afterword-turn"]
    assert request.start_time_unix_nano <= asked.start_time_unix_nano <= asked.end_time_unix_nano
    assert SECRET.encode() not in b"".join(collector.bodies) and b"The sky" not in b"".join(collector.bodies)


def test_a_failed_request_is_an_error_in_its_trace(launch: Launch, collector: Collector) -> None:
    gateway = launch(Fake(reject=(500, {"error": {"message": "CUDA is on fire"}})), traces=collector.url)
    gateway.post("/v1/chat/completions", {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]})
    until(lambda: "2 chat afterword" in collector.spans())
    request = collector.spans()["2 chat afterword"]
    assert request.status.code == 2 and values(request)["http.response.status_code"] >= 500


def test_a_collector_that_is_away_costs_no_answer(launch: Launch) -> None:
    gateway = launch(Fake(), traces="http://127.0.0.1:9")
    for _ in range(3):
        assert gateway.chat("Hi")["choices"]
    assert len(gateway.turns()) == 3
