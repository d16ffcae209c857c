"""This machine: files and their checksums, memory, URLs, console and progress."""
