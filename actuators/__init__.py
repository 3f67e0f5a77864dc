"""What touches the outside world: NGINX, its statistics, servers, load and processes. Nothing here learns."""
