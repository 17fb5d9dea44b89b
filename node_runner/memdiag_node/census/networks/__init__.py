"""Every network namespace of the node, with its devices, sockets and packets."""
