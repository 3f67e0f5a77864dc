"""Learned policies: networks, bundles that hold them, and the adviser that applies a bundle to windows."""
