"""One module per bench: `deepsched bench NAME` runs its `measure(context)`. What benches share is in `parts`."""
