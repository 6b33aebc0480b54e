"""Evaluation of checkpoints and decoding methods: nats/unit, n-gram baselines, metrics of replies, report."""
