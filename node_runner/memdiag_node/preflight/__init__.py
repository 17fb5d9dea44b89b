"""Prerequisites of each check on the host, and whether they are met."""
