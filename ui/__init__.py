"""The browser chat and the API; `xianliao-serve` is the command. It imports `chatbot` only."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no telemetry, no version check
