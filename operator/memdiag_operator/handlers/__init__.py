"""What happens when: kopf's events and a sweep, each ending in the same reconcile. Alone in importing `kopf`."""
