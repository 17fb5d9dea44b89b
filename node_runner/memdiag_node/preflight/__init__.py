"""What each check needs of the host, and whether it is there."""
