"""Measuring a checkpoint: quality in nats/unit, an n-gram baseline, decoding methods, the report."""
