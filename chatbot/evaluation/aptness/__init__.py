"""Aptness: whether replies make sense in their context, rated blind by people or by a language model.

`sheets` writes what a judge sees and the key, `judge` asks an OpenAI-compatible endpoint, `scores` reads ratings back and
computes the figures, `choosing` measures what needs no judge, `run` joins them into a report.
"""
