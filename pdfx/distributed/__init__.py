"""The ranks of a run: joining them, what they agree on, and whether their environments are alike."""
