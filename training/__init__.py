"""Train a checkpoint on prepared sets; the command is `xianliao-train`. Imports data_prep and chatbot, never ui."""
