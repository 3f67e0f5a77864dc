"""Late binding in an external NGINX: by hand (`deepsched holding`) and by a controller."""
