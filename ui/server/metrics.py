"""What the server counts, for /metrics: no text, no address, no key."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chatbot.chat.bot import Reply
from chatbot.chat.worker import Worker

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of one server, of all its checkpoints together; replies also by checkpoint.

    Args:
        workers: Their queues and live replies are read when /metrics is asked for.
    """

    def __init__(self, workers: Collection[Worker]):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.replies = Counter("xianliao_replies", "Replies by model and why they ended", ["model", "reason"], **own)
        self.tokens = Counter("xianliao_reply_tokens", "Tokens of replies, ends included", **own)
        self.first_token = Histogram("xianliao_first_token_seconds", "Time to the first token", buckets=SECONDS, **own)
        self.errors = Counter("xianliao_errors", "Requests that got no reply, by status", ["status"], **own)
        live = Gauge("xianliao_live_replies", "Replies under way", **own)
        live.set_function(lambda: sum(worker.busy_rows for worker in workers))
        waiting = Gauge("xianliao_waiting_replies", "Replies in the queue", **own)
        waiting.set_function(lambda: sum(len(worker.waiting) for worker in workers))
        remembered = Gauge("xianliao_remembered_bytes", "Memory of the states kept after turns", **own)
        remembered.set_function(lambda: sum(worker.bot.snapshots.bytes for worker in workers))

    def count_reply(self, model: str, reply: Reply, reason: str | None = None) -> None:
        """Counts a reply that has ended."""
        self.replies.labels(model, reason or reply.stop_reason).inc()
        self.tokens.inc(len(reply.token_ids) + (reply.stop_reason != "safety"))
