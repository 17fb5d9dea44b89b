"""What a status says about a run: conditions, events, progress, and how it is kept small."""
