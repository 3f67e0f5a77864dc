"""One file per bench, found by name: `rayjobs.bench` runs `measure(context)` of rayjobs/benches/NAME.py."""
