"""Memory that belongs to the machine rather than to a process or a kernel object."""
