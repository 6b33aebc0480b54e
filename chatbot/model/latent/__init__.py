"""Latent variable of a reply: different vectors z give different replies to a message, near or far from each other.

layers.py    prior p(z|c), recognition q(z|c,r), and the projections that add z to every reply token
gaussian.py  the geometry: KL in whitened coordinates, free bits, directions that are orthogonal to each other
replies.py   choice of the reply in each packed dialogue that gets a z
loss.py      the training loss: Gaussian z, or discrete z by hard EM
measures.py  active units, mutual information, shuffle test, IWAE bound

Before each block, a projection of z is added to the hidden states at the message's end of turn and at every token of
the reply (Dieng et al. 2019; DELLA 2022). The effect of a single prefix token would fade within five tokens, because
linear attention averages over the past. The initial weights of the projections are zero. Earlier turns of the history
are always read without z, so the model's state, and every cached copy of it, depends on the text alone.
"""
