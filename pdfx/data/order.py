"""The canonical order of samples: endless, a function of (seed, data, two settings) alone, never of the world size or
of workers.

An epoch permutes **spans** (consecutive samples of one shard, one stretch of a file) over all shards and then mixes
single samples within **windows** of consecutive permuted spans. Epochs follow one another without a gap: sample g of
the run is sample ``g % n`` of epoch ``g // n``.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np


def random_permutation(size: int, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """A permutation of ``range(size)``, int64, that is a function of its arguments alone.

    It ranks the raw output of a Philox generator (Salmon et al., 2011), which numpy keeps stable between versions; it
    does not promise that for ``Generator.permutation``. The sort is stable, so that even equal draws have one outcome.

    Args:
        counters: at most two numbers; streams of different counters never overlap.
    """
    key = np.frombuffer(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest(), dtype="<u8").astype(
        np.uint64
    )
    high = np.array([*counters, 0, 0][:2], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=np.concatenate([np.zeros(2, dtype=np.uint64), high]))
    return np.argsort(generator.random_raw(size), kind="stable")


class CanonicalOrder:
    """Maps a position of the endless sequence to a sample number.

    Args:
        shard_sizes: samples per shard; empty shards are allowed.
        span_samples: length of a span; the last one of a shard may be shorter.
        window_spans: spans in a window.
        stream: tells the orders of several data sets of one run apart.

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
        """The number of the sample at ``position`` >= 0 of the endless sequence. Costs one window's work at most, plus
        one epoch's spans."""
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
