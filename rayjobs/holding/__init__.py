"""Late binding of somebody's NGINX: by hand (`deepsched holding`), and as a controller does it."""
