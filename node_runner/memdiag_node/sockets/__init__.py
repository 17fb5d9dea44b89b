"""Every socket of the node: found, described, walked, judged."""
