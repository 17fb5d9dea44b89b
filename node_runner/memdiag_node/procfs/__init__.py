"""Parsers of kernel text: bytes in, typed records out."""
