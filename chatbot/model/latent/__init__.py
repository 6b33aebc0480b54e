"""Latent variable of a reply: one vector z per reply, so that a message has many replies, near and far from each other.

layers.py    prior p(z|c), recognition q(z|c,r), and the projections that add z to every reply token
gaussian.py  the geometry: KL in whitened coordinates, free bits, directions that are orthogonal to each other
replies.py   the reply of each packed dialogue that gets a z
loss.py      the training loss: Gaussian z, or discrete z by hard EM
measures.py  active units, mutual information, shuffle test, IWAE bound

z is added to the message's end of turn and to every token of the reply, before each block (Dieng et al. 2019; DELLA 2022).
A prefix token would fade within five tokens, because linear attention averages over the past. The projections begin at
zero, and a turn is read without z once it is history, so states and snapshots remain functions of the text.
"""
