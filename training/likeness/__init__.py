"""xianliao-likeness: measure, on held-out turns, how much a bot resembles the person on whose chats it was trained.

measure.py  nats/unit on the person's turns and on the others', and statistics of style
cli.py      the command
"""
