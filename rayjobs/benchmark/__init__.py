"""`deepsched benchmark`: scores between least_conn and an oracle; what is played is in `envs.study.benchmark`."""
