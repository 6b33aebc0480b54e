"""Picture of the replies to a message: the unit ball of a Gaussian latent variable, in which a point can be dragged.

replies.py   distributions of the replies that are shown, and the reply at a point
actions.py   Gradio's event handlers
text.py      texts in Chinese and English

The browser draws the picture (`ui/page/script/ball.js`) from the mean and the standard deviation of each reply.
"""
