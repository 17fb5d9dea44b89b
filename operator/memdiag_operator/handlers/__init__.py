"""What kopf calls: handlers of events, and the start of it all. Alone in importing `kopf`."""
