"""What verbs share about a run: its folder, its steps, its report, its testbed and the local Ray."""
