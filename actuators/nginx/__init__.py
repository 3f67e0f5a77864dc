"""The NGINX that this project starts: its configuration, reloads, and the control endpoint of the balancer in Lua."""
