"""Every slab of the node, and every object in them (mm/slub.c)."""
