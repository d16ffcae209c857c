"""Checkpoints: how one is laid out and written, whether it is whole, which one to take, and how a run resumes from
it."""
