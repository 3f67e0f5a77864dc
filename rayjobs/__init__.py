"""Commands: one verb a file; each runs as `deepsched VERB` and as `python -m rayjobs.VERB`."""
