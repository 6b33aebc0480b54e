"""Training: prepared sets to a checkpoint; `xianliao-train` is the command. Imports data_prep and chatbot, never ui."""
