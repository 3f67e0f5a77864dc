"""Hyperparameter search with Ray Tune: spaces, trials, population based training, live confirmation."""
