// memory.bpf.c - the reader of kernel memory alone, for runs without the socket scan.

#include "memory.bpf.h"
