"""Retrieval metrics of a model on shards, embeddings of a file of items, tables and the HTML report."""
