"""Collectives on embeddings. Without an initialised ``torch.distributed`` there is one rank and nothing is sent."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of ranks W."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of ``tensor`` over ranks, as a new tensor without gradient; the same bits on every rank."""
    total = tensor.detach().clone()
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(total)
    return total


def all_gather(tensors: list[Tensor]) -> list[Tensor]:
    """Concatenate each ``[n_i, ...]`` over ranks to ``[W * n_i, ...]``, rank 0 first, in one collective.

    Every rank must pass the same shapes, and all tensors of a call share their dtype. The gradient that a rank receives
    is the sum over ranks r of dL_r / d(its own tensor), where L_r is the loss of rank r: remote rows are not constants.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    gathered = _AllGather.apply(flat).split([tensor.numel() for tensor in tensors], dim=1)
    return [
        part.reshape(world_size * tensor.shape[0], *tensor.shape[1:])
        for part, tensor in zip(gathered, tensors, strict=True)
    ]


class _AllGather(torch.autograd.Function):
    """``[n]`` on each rank to ``[W, n]`` on all."""

    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        _, world_size = rank_and_world_size()
        gathered = local.new_empty(world_size, local.shape[0])
        dist.all_gather(list(gathered), local.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        rank, _ = rank_and_world_size()
        if dist.get_backend() == dist.Backend.NCCL:
            own = torch.empty_like(gradient[rank])
            dist.reduce_scatter(own, list(gradient.contiguous()))
            return own
        # gloo gained reduce_scatter only in recent releases of torch; the sum of everything is its fallback.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rank]
