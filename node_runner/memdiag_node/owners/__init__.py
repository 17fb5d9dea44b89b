"""Who has the memory of each class that processes and containers have (docs/owners.md)."""
