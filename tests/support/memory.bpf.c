// memory.bpf.c - nothing but the reading of kernel memory, so that tests load it quickly.
//
// Defines from memory.py, see memory.bpf.h.

#include "memory.bpf.h"
