"""The running kernel: its types, its memory, its symbols, and eBPF programs in it. Knows no subject."""
