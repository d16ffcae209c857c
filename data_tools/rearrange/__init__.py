"""Shards from shards: merged or split."""
