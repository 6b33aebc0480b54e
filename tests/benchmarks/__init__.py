"""Benchmarks: speed beside other projects (`make bench`), and experiments behind the defaults."""
