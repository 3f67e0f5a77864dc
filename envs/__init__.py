"""The decision problem: simulator, features, encoder, environment. Knows neither Ray nor sockets.

Importing it registers the environments of docs/environments.md with gymnasium.
"""

from envs.registration import register_with_gymnasium

register_with_gymnasium()
