"""The canonical order of samples: endless, a function of (seed, data, two settings) alone, never of the world size or
of workers.

An epoch permutes **spans** (consecutive samples of one shard, one stretch of a file) over all shards and then mixes
single samples within **windows** of consecutive permuted spans. Epochs follow one another without a gap: sample g of
the run is sample ``g % n`` of epoch ``g // n``.

Several data sets, each with such an order, are read in **sub-batches** that each come from one of them, each where the
one before ended. An epoch of the mixture gives data set d so many sub-batches that by its end ``epochs * quota[d]`` of
its samples were read, rounded down to whole sub-batches, in a random order (VLM2Vec's homogeneous sub-batches, arXiv
2410.05160; shares that are kept exactly in each epoch, and never drawn, are ours). Legend: S samples of a sub-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def random_permutation(size: int, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """A permutation of ``range(size)``, int64, that is a function of its arguments alone.

    It ranks the raw output of a Philox generator (Salmon et al., 2011), which numpy keeps stable between versions,
    unlike ``Generator.permutation``. Streams of different ``counters``, at most two numbers, never overlap.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    high = np.array([*counters, 0, 0][:2], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=np.concatenate([np.zeros(2, dtype=np.uint64), high]))
    return np.argsort(generator.random_raw(size), kind="stable")


class CanonicalOrder:
    """Maps a position of the endless sequence to a sample number.

    Args:
        shard_sizes: samples per shard; empty shards are allowed.
        span_samples: length of a span; the last one of a shard may be shorter.
        window_spans: spans in a window.
        stream: distinguishes the orders of several data sets of one run.

    Raises:
        ValueError: there is no sample at all.
    """

    def __init__(self, shard_sizes: list[int], seed: int, span_samples: int, window_spans: int, stream: str = ""):
        self.seed, self.window_spans, self.stream = seed, window_spans, stream
        sizes = np.asarray(shard_sizes, dtype=np.int64).reshape(-1)
        self.samples = int(sizes.sum())
        if self.samples == 0:
            raise ValueError("there are no samples to order")
        spans_per_shard = -(-sizes // span_samples)
        first_span = np.cumsum(spans_per_shard) - spans_per_shard
        shard = np.repeat(np.arange(len(sizes)), spans_per_shard)
        offset = (np.arange(len(shard)) - first_span[shard]) * span_samples
        self._span_start = (np.cumsum(sizes) - sizes)[shard] + offset
        self._span_length = np.minimum(span_samples, sizes[shard] - offset)
        # A batch may reach over the border of two epochs or windows; two of each are enough to cut batches without
        # recomputing.
        self._epoch = lru_cache(maxsize=2)(self._permute_spans)
        self._window = lru_cache(maxsize=2)(self._mix_window)

    def __len__(self) -> int:
        """Samples of one epoch."""
        return self.samples

    def sample(self, position: int) -> int:
        """The number of the sample at ``position`` >= 0. Costs at most one window's work and one epoch's spans."""
        epoch, place = divmod(position, self.samples)
        _, window_starts = self._epoch(epoch)
        window = int(np.searchsorted(window_starts, place, side="right")) - 1
        return int(self._window(epoch, window)[place - window_starts[window]])

    def _permute_spans(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The permuted spans, and the place within the epoch at which each window begins."""
        spans = random_permutation(len(self._span_start), self.seed, f"spans{self.stream}", epoch)
        starts = np.cumsum(self._span_length[spans]) - self._span_length[spans]
        return spans, starts[:: self.window_spans]

    def _mix_window(self, epoch: int, window: int) -> np.ndarray:
        """The sample numbers of one window in their final order."""
        spans = self._epoch(epoch)[0][window * self.window_spans : (window + 1) * self.window_spans]
        samples = np.concatenate(
            [np.arange(self._span_start[span], self._span_start[span] + self._span_length[span]) for span in spans]
        )
        return samples[random_permutation(len(samples), self.seed, f"windows{self.stream}", epoch, window)]


@dataclass(frozen=True)
class Start:
    """Where a sequence of sub-batches of one size begins: with the run, or where it resumed with another size.

    Attributes:
        position: samples of the run before it.
        epoch: the mixture's epoch in which it begins.
        consumed: samples read of each data set before it.
    """

    position: int
    epoch: int
    consumed: tuple[int, ...]

    def to_plain(self) -> dict:
        return {"position": self.position, "epoch": self.epoch, "consumed": list(self.consumed)}

    @classmethod
    def from_plain(cls, values: dict) -> Start:
        return cls(int(values["position"]), int(values["epoch"]), tuple(int(count) for count in values["consumed"]))


class Mixture:
    """Maps a position of the endless sequence to a data set and a sample of it.

    Args:
        orders: of the data sets.
        quotas: samples of each data set per epoch of the mixture, each at least 1.
        sub_batch: S. Of no consequence if there is one data set.
        start: where this sequence begins; the run's beginning if None.
    """

    def __init__(
        self, orders: list[CanonicalOrder], quotas: list[int], sub_batch: int, seed: int, start: Start | None = None
    ):
        self.orders, self.sub_batch, self.seed = orders, sub_batch, seed
        self.quotas = np.array(quotas, dtype=np.int64)
        self.start = start or Start(0, 0, (0,) * len(orders))
        self._before = np.array(self.start.consumed, dtype=np.int64)
        # A batch may reach over the border of two epochs.
        self._epoch = lru_cache(maxsize=2)(self._permute_sub_batches)

    @property
    def epoch_samples(self) -> int:
        """Samples of one epoch of the mixture."""
        return int(self.quotas.sum())

    def samples(self, first: int, count: int) -> list[tuple[int, int]]:
        """(data set, number of the sample in it) at ``count`` positions from ``first`` on."""
        found: list[tuple[int, int]] = []
        while len(found) < count:
            found += self._rest_of_sub_batch(first + len(found), count - len(found))
        return found

    def consumed(self, position: int) -> list[int]:
        """Samples read of each data set before ``position``."""
        epoch, place = self._locate(position)
        labels, ranks = self._epoch(epoch)
        block, inside = divmod(place, self.sub_batch)
        counts = self._whole(epoch) + self.sub_batch * np.bincount(labels[:block], minlength=len(self.quotas))
        if inside:
            counts[labels[block]] += inside
        return counts.tolist()

    def epoch_of(self, position: int) -> int:
        """The mixture's epoch to which ``position`` belongs, which is how many are complete before it."""
        return self._locate(position)[0]

    def restart(self, position: int) -> Start:
        """A start at ``position``, from which sub-batches of another size continue every data set where it is."""
        return Start(position, self.epoch_of(position), tuple(self.consumed(position)))

    def _rest_of_sub_batch(self, position: int, count: int) -> Iterator[tuple[int, int]]:
        epoch, place = self._locate(position)
        labels, ranks = self._epoch(epoch)
        block, inside = divmod(place, self.sub_batch)
        source = int(labels[block])
        first = int(self._whole(epoch)[source]) + int(ranks[block]) * self.sub_batch + inside
        order = self.orders[source]
        return ((source, order.sample(first + i)) for i in range(min(count, self.sub_batch - inside)))

    def _whole(self, epoch: int) -> np.ndarray:
        """int64 [data sets]: samples read of each before ``epoch``, given the start."""
        if epoch == self.start.epoch:
            return self._before.copy()
        return self._before + (epoch * self.quotas - self._before) // self.sub_batch * self.sub_batch

    def _first_position(self, epoch: int) -> int:
        return self.start.position + int((self._whole(epoch) - self._before).sum())

    def _locate(self, position: int) -> tuple[int, int]:
        """The epoch of a position and its place therein. Epochs too small for a sub-batch are empty."""
        low = self.start.epoch
        high = low + 1
        while self._first_position(high) <= position:
            low, high = high, high + 2 * (high - low)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._first_position(middle) <= position else (low, middle)
        return low, position - self._first_position(low)

    def _permute_sub_batches(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The data set of each sub-batch of an epoch, and how many of that data set's come before it in the epoch."""
        counts = (self._whole(epoch + 1) - self._whole(epoch)) // self.sub_batch
        labels = np.repeat(np.arange(len(counts)), counts)
        labels = labels[random_permutation(len(labels), self.seed, "sub-batches", epoch, self.start.position)]
        ranks = np.empty_like(labels)
        for source in range(len(counts)):
            own = labels == source
            ranks[own] = np.arange(int(own.sum()))
        return labels, ranks


def quotas(sizes: list[int], weights: list[float | None], most: list[int | None], temperature: float) -> list[int]:
    """Samples of each data set per epoch.

    All data sets together give as many as they hold, each at most ``most``; they share that by ``weights`` (all None,
    or none of them) or, if none are set, by their sizes to the power of ``1 / temperature`` (1: each gives all it holds
    once; larger: small data sets come more often than large ones).
    """
    held = np.array([min(size, bound or size) for size, bound in zip(sizes, most, strict=True)], dtype=np.int64)
    if weights[0] is None and temperature == 1:
        return held.tolist()
    # Divided by the largest first, so that no power overflows.
    shares = np.array(weights, dtype=np.float64) if weights[0] is not None else (held / held.max()) ** (1 / temperature)
    wanted = np.maximum(np.rint(shares / shares.sum() * held.sum()).astype(np.int64), 1)
    return [min(int(count), bound or int(count)) for count, bound in zip(wanted, most, strict=True)]
