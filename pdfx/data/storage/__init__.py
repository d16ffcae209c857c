"""Where shards lie: a local folder, or what HTTP, S3 and fsspec reach; byte ranges, repetitions, the cache."""
