"""What `make bench` runs: our parts beside their peers, alternating, medians and ratios."""
