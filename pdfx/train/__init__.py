"""Training: the DeepSpeed engine, chunked backprop, and the loop that joins all other rooms."""

import os

import torch

if not torch.cuda.is_available():
    # DeepSpeed reads it when it is first imported; left to itself it warns of a GPU that it cannot find.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
