"""Where shards lie: a folder of this machine, or what HTTP, S3 and fsspec reach; byte ranges, repetitions, the
cache."""
