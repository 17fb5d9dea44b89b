"""Every file, file system and directory entry with memory, and System V segments."""
