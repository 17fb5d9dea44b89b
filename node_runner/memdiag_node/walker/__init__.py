"""The bounded walk through kernel queues, to the last packet and page."""
