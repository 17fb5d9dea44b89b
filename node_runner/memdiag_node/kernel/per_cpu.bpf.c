// per_cpu.bpf.c - nothing but the programs and maps of per_cpu.bpf.h.

#include "per_cpu.bpf.h"
