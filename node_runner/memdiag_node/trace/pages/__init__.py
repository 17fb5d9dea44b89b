"""The trace of page allocations: which frames are outstanding, and what they are used for."""
