"""From the statistics of NGINX (vts documents) to snapshots, windows and recordings. Changes nothing in NGINX."""
