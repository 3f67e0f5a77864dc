"""An NGINX that belongs to somebody else: its configuration is read and edited in place, and can be put back."""
