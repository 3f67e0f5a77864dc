"""Touches the world: load, statistics, NGINX, servers. No learning happens here."""
