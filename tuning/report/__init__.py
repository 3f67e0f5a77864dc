"""HTML pages about runs, clusters and sweeps."""
