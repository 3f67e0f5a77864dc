"""What `gymnasium.make` and `make_vec` build for the ids of `envs.registration`."""
