"""xianliao-likeness: how like a person a bot is that was trained on the person's chats, on turns held out from training.

measure.py  nats/unit on the person's turns and on the others', and statistics of style
cli.py      the command
"""
