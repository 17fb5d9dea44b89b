"""What kopf calls: event handlers, startup and cleanup. The only importer of `kopf`."""
