"""Slab memory by cache, by what its objects are, and by whom they are charged to."""
