"""Training of a latent variable of the reply (`xianliao-train --latent`): schedule, objective, validation."""
