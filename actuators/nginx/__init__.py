"""An NGINX that this project starts itself: its configuration, reloads, and the Lua balancer's control endpoint."""
