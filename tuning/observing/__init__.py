"""The observation phase: watches a testbed, fits deadlines and the mixture, and describes the clusters."""
