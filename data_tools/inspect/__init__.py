"""What is in a directory of shards, and whether it is whole."""
