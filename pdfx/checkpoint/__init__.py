"""Checkpoints: how they are laid out and written, which are whole, which to take, and how a run resumes from one."""
