"""`deepsched admission`: the rule in force at an NGINX, and the search of its numbers."""
