"""The decision problem as gymnasium environments: actions, rewards, single and vector environments."""
