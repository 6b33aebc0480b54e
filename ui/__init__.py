"""Checkpoint to people: the browser chat. Imports chatbot only. `xianliao-serve` is the command."""
