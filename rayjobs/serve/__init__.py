"""`deepsched serve`: a bundle over HTTP, with or without Ray Serve."""
