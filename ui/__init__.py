"""The browser chat and the API. Imports chatbot and no other package of this project; `xianliao-serve` is the command."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no telemetry, no version check
