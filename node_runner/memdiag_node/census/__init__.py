"""Every page frame and every object of the kernel: what it is, what keeps it, and whom it is charged to."""
