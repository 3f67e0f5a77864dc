"""Live testbeds assembled from the parts in the sibling packages, local or as Ray actors, and peers to compare
with.
"""
