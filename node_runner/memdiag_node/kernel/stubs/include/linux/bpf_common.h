/* Nothing: bcc brings its own linux/bpf.h. */
