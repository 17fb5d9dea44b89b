"""What runs in the kernel, and its loader."""
