"""Counters of the server for /metrics; they hold no text, address or key."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chatbot.chat.bot import Reply
from chatbot.chat.worker import Worker

BUCKET_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of one server, summed over its checkpoints; replies also by checkpoint.

    Args:
        workers: Workers whose queues and live replies are read when a client requests /metrics.
    """

    def __init__(self, workers: Collection[Worker]):
        self.registry = registry = CollectorRegistry()
        self.replies = Counter(
            "xianliao_replies", "Replies by model and reason of their end", ["model", "reason"], registry=registry
        )
        self.tokens = Counter("xianliao_reply_tokens", "Generated tokens of replies", registry=registry)
        self.first_token = Histogram(
            "xianliao_first_token_seconds", "Time to the first token", buckets=BUCKET_SECONDS, registry=registry
        )
        self.errors = Counter("xianliao_errors", "Requests that got no reply, by status", ["status"], registry=registry)
        live = Gauge("xianliao_live_replies", "Replies being decoded", registry=registry)
        live.set_function(lambda: sum(worker.busy_rows for worker in list(workers)))
        waiting = Gauge("xianliao_waiting_replies", "Replies in the queue", registry=registry)
        waiting.set_function(lambda: sum(len(worker.waiting) for worker in list(workers)))
        remembered = Gauge("xianliao_remembered_bytes", "Memory of the states kept after turns", registry=registry)
        remembered.set_function(lambda: sum(worker.bot.snapshots.bytes for worker in list(workers)))

    def count_reply(self, model: str, reply: Reply, reason: str | None = None) -> None:
        """Count a reply that has ended; `reason` replaces the reply's own reason."""
        self.replies.labels(model, reason or reply.stop_reason).inc()
        self.tokens.inc(reply.generated_tokens)
