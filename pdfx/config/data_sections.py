"""What a recipe says about its data."""

from __future__ import annotations

from pathlib import PurePosixPath

from pydantic import Field, model_validator

from pdfx.config.section import LocalPath, PathText, Section
from pdfx.host.urls import without_secrets


def _max_image_pixels() -> int:
    # Imported when a recipe is read, since it brings Pillow.
    from pdfx.model.pictures import MAX_IMAGE_PIXELS

    return MAX_IMAGE_PIXELS


class DataSetSection(Section):
    """One of several data sets to train on."""

    path: PathText
    """Directory of shards made by ``pdfx shards build``, or a URL of one."""
    name: str | None = None
    """For reports and checkpoints; the directory's own name if null."""
    weight: float | None = Field(None, gt=0)
    """Its share of an epoch, relative to the other data sets' weights. Set for all data sets or for none."""
    max_samples: int | None = Field(None, ge=1)
    """Samples that one epoch takes at most; the next epoch continues with the others."""


class DataSection(Section):
    train: PathText | list[PathText | DataSetSection] = Field(min_length=1)
    """Directory of shards made by ``pdfx shards build``, or a URL of one, or a list of such data sets."""
    mixture_temperature: float | None = Field(None, gt=0)
    """Where no weights are set, data sets share an epoch by their sizes to the power of 1 over this; 1 if null: each
    gives all its samples once."""
    sub_batch_pairs: int = Field(32, ge=1)
    """Pairs that come from one data set at a stretch, before another one is drawn."""
    evaluation: PathText | list[PathText] | None = Field(None, min_length=1)
    """Directory of shards to evaluate on, or a URL of one, or a list of them; each is evaluated by itself."""
    hard_negatives: int | None = Field(None, ge=0)
    """Hard negatives used per pair; samples that have fewer are filled and masked. None if null, which is said at
    the start if the shards hold some."""
    num_workers: int = Field(2, ge=0)
    prefetch_batches: int = Field(4, ge=1)
    span_samples: int = Field(64, ge=1)
    """Consecutive samples of one shard that are permuted as one unit."""
    window_spans: int = Field(256, ge=1)
    """Spans among which single samples are mixed."""
    max_corrupt_share: float = Field(0.01, ge=0, le=1)
    """The run stops when more than this share of the samples read so far could not be used."""
    max_image_pixels: int = Field(default_factory=_max_image_pixels, ge=1)
    """Larger pictures are refused as decompression bombs."""
    read_threads: int = Field(8, ge=1)
    """Requests that one process has under way at once, if data is behind a URL; the settings that follow are for URLs
    too. Local folders are read directly."""
    read_retries: int = Field(5, ge=0)
    """Repetitions of a request after a time-out, a broken connection or a failure of the server."""
    read_retry_seconds: float = Field(1.0, ge=0)
    """Wait before the first repetition at most; each further wait is twice as long, up to a minute."""
    read_timeout_seconds: float = Field(60.0, gt=0)
    """An answer that takes longer is given up and asked for again."""
    cache_dir: LocalPath | None = None
    """Folder on a local disk that keeps what was fetched, for all processes of the machine and for later runs. None is
    kept if null."""
    cache_gigabytes: float = Field(100.0, gt=0)
    """What the cache takes at most; what was not read for longest goes first."""

    @model_validator(mode="after")
    def check(self):
        names = [data_set.name for data_set in self.training_sets()]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated:
            raise ValueError(f"two data sets of train are called '{repeated}'; give each a name of its own")
        weighted = [data_set.weight is not None for data_set in self.training_sets()]
        if any(weighted) and not all(weighted):
            raise ValueError("some data sets of train have a weight and some have none; set it for all or for none")
        if any(weighted) and self.mixture_temperature is not None:
            raise ValueError("mixture_temperature has no effect beside weights; remove one of them")
        return self

    def training_sets(self) -> list[DataSetSection]:
        """The data sets of ``train``, each with a name."""
        listed = [self.train] if isinstance(self.train, str) else self.train
        sets = [DataSetSection(path=item) if isinstance(item, str) else item for item in listed]
        shown = [without_secrets(data_set.path) for data_set in sets]
        return [
            data_set.model_copy(update={"name": data_set.name or PurePosixPath(path).name or path})
            for data_set, path in zip(sets, shown, strict=True)
        ]
