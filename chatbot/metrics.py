"""Holds the metrics for Prometheus: some are updated where things happen, at the end of an answer
and never at a token, the others are read from engine and database at each scrape.

Names follow https://prometheus.io/docs/practices/naming/; no label takes text from clients.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Protocol

import prometheus_client as prometheus
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from chatbot.engine.protocol import Engine
from chatbot.model.base import Base
from chatbot.registry import Promotion
from chatbot.webhooks import outbox
from feedback import kinds
from feedback.ids import now
from feedback.messages import Speaker
from feedback.store import Store

WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Seconds, for whole answers and between two tokens."""
LENGTH_BUCKETS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

ENGINE_GAUGES = {
    "slots": ("talkback_slots", "Streams that can run at the same time"),
    "running": ("talkback_streams_running", "Streams that run now"),
    "waiting": ("talkback_streams_waiting", "Requests that wait for a slot"),
}
WORKER_GAUGES = {
    "workers": ("talkback_workers", "Processes of the engine that are alive"),
    "resident": ("talkback_workers_resident_memory_bytes", "Memory of these processes together"),
}
ENGINE_COUNTERS = {
    "prompt": ("talkback_prompt_tokens", "Prompt tokens that were read"),
    "recalled": ("talkback_recalled_tokens", "Prompt tokens that need not be read again"),
    "decoded": ("talkback_decoded_tokens", "Tokens that were generated"),
    "guessed": ("talkback_guessed_tokens", "Of these, those that took no step of their own"),
    "steps": ("talkback_engine_steps", "Decode steps of the engine"),
    "requests": ("talkback_engine_requests", "Streams that have ended, of whoever asked"),
}
"""Key of ``Engine.stats`` -> name and help of the metric."""


class ServingState(Protocol):
    """Names what is read at each scrape; `Service` has it."""

    @property
    def store(self) -> Store:
        """Return the store whose feedback is counted."""

    @property
    def base(self) -> Base:
        """Return the base that is served."""

    @property
    def engine(self) -> Engine:
        """Return the engine whose statistics are read."""

    @property
    def speaking(self) -> str:
        """Return the id of the adapter that answers new turns."""

    @property
    def warning(self) -> str:
        """Return why a promoted adapter does not speak, or ""."""


class Metrics:
    """Holds the metrics that are updated where things happen; `registry` makes them visible."""

    def __init__(self) -> None:
        self.answers = prometheus.Counter(
            "talkback_answers", "Answers that have ended", ["source", "finish"], registry=None
        )
        self.first_token = prometheus.Histogram(
            "talkback_first_token_seconds",
            "From the request to the first token, waiting included",
            buckets=WAIT_BUCKETS,
            registry=None,
        )
        self.inter_token = prometheus.Histogram(
            "talkback_inter_token_seconds",
            "Between two tokens, on average over an answer",
            buckets=TOKEN_BUCKETS,
            registry=None,
        )
        self.duration = prometheus.Histogram(
            "talkback_answer_seconds",
            "From the request to the last token",
            buckets=WAIT_BUCKETS,
            registry=None,
        )
        self.length = prometheus.Histogram(
            "talkback_answer_tokens", "Tokens of an answer", buckets=LENGTH_BUCKETS, registry=None
        )
        self.refused = prometheus.Counter(
            "talkback_refused", "Requests refused because all slots were taken", registry=None
        )
        self.swap = prometheus.Histogram(
            "talkback_swap_seconds",
            "From a promotion to the first moment its adapter speaks",
            buckets=WAIT_BUCKETS,
            registry=None,
        )
        self.swaps = prometheus.Counter(
            "talkback_swaps", "Promotions that the running server has followed", registry=None
        )
        self.requests = prometheus.Counter(
            "talkback_http_requests",
            "HTTP requests by the route's template",
            ["method", "route", "status"],
            registry=None,
        )

    def record_answer(self, speaker: Speaker) -> None:
        """Record an answer that has ended, with its latencies if the model generated it."""
        self.answers.labels(speaker.source, speaker.finish).inc()
        if speaker.source != "model" or speaker.first_token_ms is None:
            return
        first, total = speaker.first_token_ms, speaker.total_ms or speaker.first_token_ms
        self.first_token.observe(first / 1000)
        self.duration.observe(total / 1000)
        self.length.observe(speaker.completion_tokens)
        if speaker.completion_tokens > 1:
            self.inter_token.observe((total - first) / 1000 / (speaker.completion_tokens - 1))

    def record_swap(self, promotion: Promotion) -> None:
        """Record that the adapter of a promotion speaks from this moment on."""
        self.swaps.inc()
        passed = datetime.fromisoformat(now()) - datetime.fromisoformat(promotion.created_at)
        self.swap.observe(max(0.0, passed.total_seconds()))

    def registry(
        self, service: ServingState, webhook_backlog: Callable[[], int]
    ) -> prometheus.CollectorRegistry:
        """Return a registry with all metrics of one app.

        ``webhook_backlog`` returns the number of events that wait for the slowest webhook.
        """
        registry = prometheus.CollectorRegistry()
        for metric in vars(self).values():
            registry.register(metric)
        registry.register(StateCollector(service, webhook_backlog))
        prometheus.ProcessCollector(registry=registry)
        return registry


class StateCollector(Collector):
    """Reads gauges and counters from the engine and the database at each scrape."""

    def __init__(self, service: ServingState, webhook_backlog: Callable[[], int]) -> None:
        self._service, self._webhook_backlog = service, webhook_backlog
        self._feedback = FeedbackCounter(service.store)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of this collector."""
        service, stats = self._service, self._service.engine.stats()
        for key, name_and_help in ENGINE_GAUGES.items():
            yield GaugeMetricFamily(*name_and_help, value=stats[key])
        for key, name_and_help in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(*name_and_help, value=stats[key])
        for (
            key,
            name_and_help,
        ) in WORKER_GAUGES.items():  # none where the engine runs in this process
            yield GaugeMetricFamily(*name_and_help, value=stats.get(key, 0))
        loaded = len(service.engine.adapters()) - 1
        yield GaugeMetricFamily("talkback_adapters_loaded", "Beside the base", value=loaded)
        yield InfoMetricFamily("talkback_serving", "Who speaks", value=_serving(service))
        yield GaugeMetricFamily(
            "talkback_promotion_refused",
            "1 while a promoted adapter cannot speak",
            value=bool(service.warning),
        )
        yield GaugeMetricFamily(
            "talkback_webhook_events_waiting",
            "Events the slowest webhook has not heard of",
            value=self._webhook_backlog(),
        )
        yield self._feedback.metric()


class FeedbackCounter:
    """Counts feedback since this process began, whichever process stored it; each scrape reads only
    the events that are new."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last_event = outbox.last_number(store)
        self._kinds: Counter[str] = Counter(dict.fromkeys(kinds.FEEDBACK_KINDS, 0))
        self._lock = threading.Lock()

    def metric(self) -> Metric:
        """Return the counter, labelled by kind."""
        metric = CounterMetricFamily("talkback_feedback", "Feedback by kind", labels=["kind"])
        with self._lock:
            newest = outbox.last_number(self._store)
            self._kinds.update(outbox.feedback_counts(self._store, self._last_event, newest))
            self._last_event = newest
            for kind, count in self._kinds.items():
                metric.add_metric([kind], count)
        return metric


def _serving(service: ServingState) -> dict[str, str]:
    base = service.base
    return {
        "adapter": service.speaking,
        "base": base.name,
        "base_revision": str(base.revision or ""),
    }
