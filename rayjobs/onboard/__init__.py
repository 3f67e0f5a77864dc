"""`deepsched onboard`: from a status URL to a promise of what would be gained, and a bundle to steer with."""
