/* LINUX_VERSION_CODE is defined by the loader, from the running kernel. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
