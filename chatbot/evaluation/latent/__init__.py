"""Latent variables in the report on other ways to say a reply (`chatbot.evaluation.variety`).

picture.py        the unit ball of a message, with each reply as an ellipse
interpolation.py  replies between two replies: do they change step by step, and do they remain fluent?
"""
