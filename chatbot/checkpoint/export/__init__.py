"""Export of checkpoints to the formats of other programs: `xianliao-export CHECKPOINT --to FORMAT --output PATH`."""
