"""`deepsched steer`: the controller of a live NGINX, its folder, orders, watchdog and replay."""
