"""The browser chat and the API; the command is `xianliao-serve`. This package imports only `chatbot`."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no telemetry, no version check
