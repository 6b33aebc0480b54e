"""Checkpoints in the formats of others: `xianliao-export CHECKPOINT --to FORMAT --output PATH`."""
