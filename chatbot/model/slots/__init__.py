"""States of many dialogues in slots (rows of shared tensors), for batches that dialogues join and leave at any step.

table.py     the tensors of all slots, and a view of some slots for one forward pass
states.py    the view as the state of our network, and as the cache of a chat model run by transformers
"""
