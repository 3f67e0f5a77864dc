"""`deepsched fetch`: results of a submitted job that stayed on the cluster, over Ray's job interface."""
