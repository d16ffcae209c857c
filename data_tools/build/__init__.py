"""From records to a directory of shards."""
