"""Memory cgroups: the tree, the account of each container, and the groups that were removed."""
