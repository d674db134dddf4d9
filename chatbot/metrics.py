"""What Prometheus is told: meters that are moved where things happen, at the end of an answer and
never a token, and readings that are taken when somebody looks.

Names follow https://prometheus.io/docs/practices/naming/; no label takes words from outside.
"""

import threading
from collections import Counter
from collections.abc import Iterator
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
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
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
"""What ``Engine.stats`` calls it -> the metric and what it means."""


class Observed(Protocol):
    """Names what is read at each look; `Service` has it."""

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


class Backlog(Protocol):
    def pending(self) -> int:
        """How many events wait to be told."""


class Metrics:
    """Moved by the service; each belongs to no registry until somebody watches."""

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
            buckets=STEP_BUCKETS,
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
        """An answer has ended; one that a reviewer gave took the model no time."""
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
        """The adapter of a promotion speaks from this moment on."""
        self.swaps.inc()
        passed = datetime.fromisoformat(now()) - datetime.fromisoformat(promotion.created_at)
        self.swap.observe(max(0.0, passed.total_seconds()))

    def registry(self, service: Observed, backlog: Backlog) -> prometheus.CollectorRegistry:
        """All meters and readings of one app."""
        registry = prometheus.CollectorRegistry()
        for meter in vars(self).values():
            registry.register(meter)
        registry.register(StateCollector(service, backlog))
        prometheus.ProcessCollector(registry=registry)
        return registry


class StateCollector(Collector):
    """Taken at each look from the engine and the database."""

    def __init__(self, service: Observed, backlog: Backlog) -> None:
        self._service, self._backlog = service, backlog
        self._said = FeedbackCounter(service.store)

    def collect(self) -> Iterator[Metric]:
        """All readings."""
        service, stats = self._service, self._service.engine.stats()
        for key, named in ENGINE_GAUGES.items():
            yield GaugeMetricFamily(*named, value=stats[key])
        for key, named in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(*named, value=stats[key])
        for key, named in WORKER_GAUGES.items():  # none where the engine runs in this process
            yield GaugeMetricFamily(*named, value=stats.get(key, 0))
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
            value=self._backlog.pending(),
        )
        yield self._said.metric()


class FeedbackCounter:
    """Feedback since this process began, whoever kept it: only what is new is counted at a look."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = outbox.last_number(store)
        self._kinds: Counter[str] = Counter(dict.fromkeys(kinds.FEEDBACK_KINDS, 0))
        self._lock = threading.Lock()

    def metric(self) -> Metric:
        """By kind."""
        metric = CounterMetricFamily("talkback_feedback", "Feedback by kind", labels=["kind"])
        with self._lock:
            newest = outbox.last_number(self._store)
            self._kinds.update(outbox.feedback_counts(self._store, self._seen, newest))
            self._seen = newest
            for kind, count in self._kinds.items():
                metric.add_metric([kind], count)
        return metric


def _serving(service: Observed) -> dict[str, str]:
    base = service.base
    return {
        "adapter": service.speaking,
        "base": base.name,
        "base_revision": str(base.revision or ""),
    }
