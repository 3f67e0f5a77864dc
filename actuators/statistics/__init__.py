"""From vts documents to snapshots, windows and recordings. Reads NGINX only; changes nothing."""
