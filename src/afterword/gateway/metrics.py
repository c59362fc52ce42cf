"""Defines the Prometheus metrics of a gateway, each in one place. Counts only; never decides."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_OVERHEAD = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)
_SWAP = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)

REPETITION = "repetition"
"""Stop reason of an answer that the embedded engine ended because it said the same again and again."""
CUT_REASONS = ("length", REPETITION)
FULL_CONTEXT_ACTIONS = ("dropped", "error")


class Metrics:
    """Holds one registry per gateway, so that two gateways in one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.overhead = Histogram(
            "afterword_overhead_seconds", "Time added to an answer by the gateway", registry=registry, buckets=_OVERHEAD
        )
        self.requests = Counter(
            "afterword_requests_total", "Chat requests", ("model", "adapter", "status"), registry=registry
        )
        self.stored = Counter("afterword_turns_stored_total", "Turns on disk", registry=registry)
        self.late = Counter(
            "afterword_turns_late_total", "Turns whose answer left before they were on disk", registry=registry
        )
        self.dropped = Counter(
            "afterword_turns_dropped_total", "Turns that could not be stored", ("reason",), registry=registry
        )
        self.pending = Gauge("afterword_turns_pending", "Turns that wait for a commit", registry=registry)
        self.feedback = Counter("afterword_feedback_total", "Feedback events", ("kind", "status"), registry=registry)
        self.links = Counter("afterword_links_total", "How requests were linked", ("outcome",), registry=registry)
        self.retries = Counter(
            "afterword_retries_total", "Requests that a client sent again by itself", ("outcome",), registry=registry
        )
        self.automated = Counter(
            "afterword_automated_messages_total",
            "Messages in the user's role that a program wrote",
            ("origin",),
            registry=registry,
        )
        self.adapter = Gauge(
            "afterword_active_adapter_info", "The adapter that NAME serves", ("adapter",), registry=registry
        )
        self.swaps = Histogram(
            "afterword_swap_seconds", "From the release row to the moved alias", registry=registry, buckets=_SWAP
        )
        self.upstream_errors = Counter(
            "afterword_upstream_errors_total", "What went wrong upstream", ("reason",), registry=registry
        )

        self.cut = Counter(
            "afterword_answers_cut_total",
            "Answers that ended at their bound or because they said the same again and again",
            ("reason",),
            registry=registry,
        )
        self.full_context = Counter(
            "afterword_full_context_total",
            "Requests that were longer than the model's context",
            ("action",),
            registry=registry,
        )
        self.server_ready = Gauge(
            "afterword_server_ready", "1 while a model server gets requests, with several of them", ("server",),
            registry=registry,
        )  # fmt: skip
        self.server_in_flight = Gauge(
            "afterword_server_requests_in_flight", "Requests that a model server answers, with several of them",
            ("server",), registry=registry,
        )  # fmt: skip
        self.episodes_started = Counter("afterword_episodes_started_total", "Episodes begun", registry=registry)
        self.episodes_ended = Counter(
            "afterword_episodes_ended_total", "Episodes ended, by status and limit", ("status", "limit"),
            registry=registry,
        )  # fmt: skip
        self.episode_rejections = Counter(
            "afterword_episode_requests_rejected_total", "Requests of episodes beyond a limit", ("limit",),
            registry=registry,
        )  # fmt: skip

    def cut_counts(self) -> dict[str, int]:
        """Truncated answers since the start, by reason."""
        return {reason: _count(self.cut, reason) for reason in CUT_REASONS}

    def full_context_counts(self) -> dict[str, int]:
        """Requests beyond the context since the start, by action."""
        return {action: _count(self.full_context, action) for action in FULL_CONTEXT_ACTIONS}

    def render(self) -> bytes:
        """Renders all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _count(counter: Counter, label: str) -> int:
    return int(counter.labels(label)._value.get())
