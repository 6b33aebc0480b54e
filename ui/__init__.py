"""Checkpoint to people: the browser chat. Imports chatbot only. `xianliao-serve` is the command."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no telemetry, no look-ups
