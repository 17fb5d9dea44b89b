"""Every packet of the node: where it waits, what it keeps, and what refers to it."""
