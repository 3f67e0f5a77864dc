"""What the clusters of a mixture mean: describes them for people."""
