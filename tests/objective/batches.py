"""Batches of random embeddings, and objectives for them."""

import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from pdfx.config import ObjectiveSection
from pdfx.objective import Objective

PAIRS, PATHS, DIMENSION, NEGATIVES = 7, 3, 8, 2
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
"""Of float64: a few thousand roundings of 1.1e-16 on values below 100."""
EMBEDDINGS = ("query", "target", "negatives", "query_fused", "target_fused", "negatives_fused")


def batch(
    seed=0, pairs=PAIRS, paths=PATHS, negatives=NEGATIVES, dimension=DIMENSION, fused=DIMENSION, dtype=torch.float64
):
    generator = torch.Generator().manual_seed(seed)

    def embed(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return normalize(values, dim=-1).to(dtype).requires_grad_()

    return {
        "query": embed(pairs, paths, dimension),
        "target": embed(pairs, paths, dimension),
        "negatives": embed(pairs, negatives, paths, dimension),
        "query_fused": embed(pairs, fused),
        "target_fused": embed(pairs, fused),
        "negatives_fused": embed(pairs, negatives, fused),
        "target_ids": torch.randint(0, 4, (pairs,), generator=generator),
        "negative_ids": torch.randint(0, 6, (pairs, negatives), generator=generator),
        "valid": torch.ones(pairs, dtype=torch.bool),
        "negative_valid": torch.ones(pairs, negatives, dtype=torch.bool),
        "log_temperature": torch.tensor(-1.2, dtype=dtype, requires_grad=True),
        "step": 1000,
    }


def with_fillers(data):
    data["valid"][[1, 4]] = False
    data["negative_valid"][0, 1:] = data["negative_valid"][3, :1] = False
    return data


def leaves(data):
    return [data[name] for name in EMBEDDINGS] + [data["log_temperature"]]


def objective_of(paths=PATHS, dims=(), **settings) -> Objective:
    return Objective(ObjectiveSection(**settings), paths=paths, dimension=DIMENSION, seed=0, matryoshka_dims=list(dims))


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result
