"""Kernel text files: pure parsers over bytes, and the readers that find the files under a given root."""
