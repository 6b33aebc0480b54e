"""What the server counts, for /metrics: no text, no address, no key."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chatbot.batching import Worker

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of one server.

    Args:
        worker: Its queue and live replies are read when /metrics is asked for.
    """

    def __init__(self, worker: Worker):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.replies = Counter("xianliao_replies", "Replies by why they ended", ["reason"], **own)
        self.tokens = Counter("xianliao_reply_tokens", "Tokens of replies, ends included", **own)
        self.first_token = Histogram("xianliao_first_token_seconds", "Time to the first token", buckets=SECONDS, **own)
        self.errors = Counter("xianliao_errors", "Requests that got no reply, by status", ["status"], **own)
        live = Gauge("xianliao_live_replies", "Replies under way", **own)
        live.set_function(lambda: worker.busy_rows)
        waiting = Gauge("xianliao_waiting_replies", "Replies in the queue", **own)
        waiting.set_function(lambda: len(worker.waiting))
        remembered = Gauge("xianliao_remembered_bytes", "Memory of the states kept after turns", **own)
        remembered.set_function(lambda: worker.bot.snapshots.bytes)
