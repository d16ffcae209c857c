"""Tools that make and examine directories of shards."""
