"""Fitting and refitting the Gaussian mixture, and its novelty check. Evaluating it is `envs.observation.encoder`."""
