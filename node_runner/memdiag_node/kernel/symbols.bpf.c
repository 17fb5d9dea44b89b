// symbols.bpf.c - the names of kernel addresses alone.

#include "symbols.bpf.h"
