"""The NGINX of a user: its configuration is read and edited in place, and can be restored."""
