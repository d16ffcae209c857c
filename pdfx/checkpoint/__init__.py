"""Checkpoints on disk: how one is laid out, whether it is whole, which one to take, and its parameters whatever ranks wrote them.

Nothing here needs DeepSpeed or the ranks of a run; ``pdfx.train.saver`` writes what is read here.
"""
