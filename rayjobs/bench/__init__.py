"""One module or package per bench: `deepsched bench NAME` runs its `measure(context)`; `parts` is what they share."""
