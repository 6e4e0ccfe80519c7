"""Numbers for Prometheus: of requests, and of the schedulers when they are read."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from hanmo.server.models import Served


_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """The numbers of one application."""

    def __init__(self, models: "Mapping[str, Served]") -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "hanmo_requests", "Requests that were answered.", ["endpoint", "status"], registry=self._registry
        )
        self._first = Histogram(
            "hanmo_time_to_first_token_seconds", "From the request to its first token.", ["model"],
            buckets=_FIRST, registry=self._registry,
        )  # fmt: skip
        self._between = Histogram(
            "hanmo_time_between_tokens_seconds", "From one token of a text to the next.", ["model"],
            buckets=_BETWEEN, registry=self._registry,
        )  # fmt: skip
        self._registry.register(_Schedulers(models))

    def clock(self, model: str, begun: float) -> Callable[[int], None]:
        """Return a function that is called with a row at each of its tokens.   begun: of time.monotonic."""
        first, between, last = self._first.labels(model), self._between.labels(model), dict[int, float]()

        def tick(row: int) -> None:
            now = time.monotonic()
            if row in last:
                between.observe(now - last[row])
            else:
                first.observe(now - begun)
            last[row] = now

        return tick

    def text(self) -> bytes:
        """Return all numbers in Prometheus's text format."""
        return generate_latest(self._registry)


class CountRequests:
    """Middleware: counts answers by endpoint and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            self._metrics.requests.labels(endpoint, str(status)).inc()


class _Schedulers(Collector):
    """Reads the schedulers' numbers; the rate of a counter is a speed."""

    def __init__(self, models: "Mapping[str, Served]") -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """Return the numbers of each model that generates."""
        gauges = {
            "waiting": GaugeMetricFamily("hanmo_rows_waiting", "Rows in the queue.", labels=["model"]),
            "running": GaugeMetricFamily("hanmo_rows_running", "Rows in the batch.", labels=["model"]),
            "cached_ids": GaugeMetricFamily("hanmo_cached_tokens", "Tokens in the rows' caches.", labels=["model"]),
        }
        counters = {
            "tokens": CounterMetricFamily("hanmo_tokens", "Generated tokens.", labels=["model"]),
            "prompt_ids": CounterMetricFamily("hanmo_prompt_tokens", "Tokens of prompts.", labels=["model"]),
            "steps": CounterMetricFamily("hanmo_steps", "Steps of the engine.", labels=["model"]),
        }
        limit = GaugeMetricFamily("hanmo_cache_tokens", "Tokens for which the caches have room.", labels=["model"])
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {**gauges, **counters}
        for name, model in self._models.items():
            if model.scheduler is not None:
                stats = model.scheduler.stats
                for key, family in families.items():
                    family.add_metric([name], getattr(stats, key))
                if model.scheduler.cache_ids is not None:
                    limit.add_metric([name], model.scheduler.cache_ids)
        return [*families.values(), limit]
