"""Used memory by class."""
