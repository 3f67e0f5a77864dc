"""Training: RLlib algorithms and modules, imitation, recorded transitions, early stopping and the proof of a
residual.
"""
