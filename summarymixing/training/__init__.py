"""Training: command line, hyperparameters, checkpoints and the Brains."""
