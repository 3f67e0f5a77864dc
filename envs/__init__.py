"""The decision problem: simulator, features, encoder, environment. Knows neither Ray nor sockets."""
