"""Training on live testbeds: conductors (Ray actors), leases and the vector environment over them."""
