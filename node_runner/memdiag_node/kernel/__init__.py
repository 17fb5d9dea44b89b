"""Access to the running kernel: its types, memory and symbols, and eBPF programs. Independent of what is measured."""
