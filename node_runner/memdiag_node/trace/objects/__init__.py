"""The trace of slab objects, per-CPU memory and areas of vmalloc."""
