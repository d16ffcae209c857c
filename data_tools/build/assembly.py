"""From packed samples, one after another, to finished shards. A file keeps the records that give no sample, with their
reasons, and too many of them stop the build."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from data_tools.build.deduplicate import LEAKAGE_NAME, EarlierSamples, EvaluationSet
from data_tools.build.journal import Journal, Step, chained
from data_tools.build.pack import Packed, Rejected
from data_tools.build.settings import BuildSettings
from data_tools.build.shard_writer import ShardWriter, write_index
from data_tools.sources.base import BELOW_LABEL, RAW_CHARACTERS, SourceRecord
from pdfx.data.samples import too_many
from pdfx.data.schema import ShardIndex
from pdfx.errors import UserError, shortened
from pdfx.host.files import sync

Overview = Callable[[Mapping[str, int]], str]
QUARANTINE_NAME = "quarantine.jsonl"
LEFT_OUT = ("duplicate", "leaked", BELOW_LABEL)
"""Kinds of records that give no sample though nothing is wrong with them."""

_JUDGED_FROM = 1000
_NAMED = 3
_REASON_CHARACTERS = 300
_SENTENCE_CHARACTERS = 1000


class Assembly:
    """Takes the results of a source's records in order and resumes where the journal ends. What it writes is a function
    of that sequence alone.

    Args:
        total: records of the source, or None.
        overview: from the counts of records that gave no sample, by kind, to sentences for the message that there are
            too many.

    Attributes:
        position: how many of the source's records are dealt with.
    """

    def __init__(
        self,
        out: Path,
        settings: BuildSettings,
        journal: Journal,
        evaluation: list[EvaluationSet],
        total: int | None,
        overview: Overview,
    ):
        self.out, self.settings, self.journal, self.evaluation = out, settings, journal, evaluation
        last = journal.last
        self.position, self.targets_only, self.stamp = last.position, last.targets_only, last.stamp
        self.rejected, self.leaks = Counter(last.rejected), Counter(last.leaks)
        names = QUARANTINE_NAME, LEAKAGE_NAME
        self._files = {name: AppendedFile(out / name, last.lengths.get(name, 0)) for name in names}
        self._bad_share = BadShare(
            settings.max_bad_share, total, out / QUARANTINE_NAME, lambda: overview(self.rejected)
        )
        self._earlier = EarlierSamples(journal.folder, settings.deduplicate)
        for entry in [] if journal.is_at_end else journal.shards:
            self._earlier.restore(entry.name)
        self._writer = ShardWriter(journal.staging, len(journal.shards))

    def __enter__(self) -> Assembly:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        for file in self._files.values():
            file.close()

    def take(self, source: SourceRecord, result: Packed | Rejected) -> None:
        """What became of the source's next record.

        Raises:
            TooManyBadRecords: more records than allowed cannot be used.
        """
        rejected = result if isinstance(result, Rejected) else self._take_packed(source, result)
        if rejected is not None:
            self.rejected[rejected.kind] += 1
            self._files[QUARANTINE_NAME].append(quarantine_line(source, self.position, rejected))
        self.position += 1
        self.stamp = chained(self.stamp, result.stamp)
        if self._writer.samples == self.settings.samples_per_shard:
            self._finish_shard()
        if rejected is not None:
            self._check_share(is_end=False)

    def _take_packed(self, source: SourceRecord, packed: Packed) -> Rejected | None:
        """Add a sample to the shard, or say why it is left out."""
        rejected = self._earlier.find(packed)
        shared = [] if rejected else [share for evaluation in self.evaluation for share in evaluation.find(packed)]
        if shared and self.settings.drop_leaked:
            rejected = Rejected(
                "leaked",
                f"its {shared[0]['shares']} is in the sample '{shared[0]['key']}' of the evaluation set "
                f"{shared[0]['evaluation']}",
            )
        # Before anything of this record is written: what a shard's step in the journal covers ends with the record
        # before.
        is_full = self._writer.samples and self._writer.size + len(packed.data) > self.settings.shard_bytes
        if rejected is None and is_full:
            self._finish_shard()
        if shared:
            self.leaks.update(["records", *{share["shares"] for share in shared}])
            self._files[LEAKAGE_NAME].append(
                {"origin": source.origin, "key": packed.key, "left_out": rejected is not None, "shared": shared}
            )
        if rejected is None:
            self._earlier.add(self.position, packed)
            self._writer.add(packed.data, packed.counts)
        return rejected

    def finish(self) -> ShardIndex | None:
        """Write the last shard and the index; None, and nothing, if there is no sample at all.

        Raises:
            TooManyBadRecords: more records than allowed cannot be used.
        """
        if not self.journal.is_at_end:
            if self._writer.samples:
                self._finish_shard()
            self._check_share(is_end=True)
            if not self.journal.shards:
                return None
            self._note(Step())
        return write_index(self.journal.staging, self.out, self.journal.shards, self.targets_only)

    def _finish_shard(self) -> None:
        self.targets_only += self._writer.counts["targets_only"]
        entry = self._writer.finish(self.out)
        self._earlier.save(entry.name)
        self._note(Step(shard=entry))
        self._writer = ShardWriter(self.journal.staging, len(self.journal.shards))

    def _note(self, step: Step) -> None:
        for file in self._files.values():
            file.sync()
        sync(self.out)
        state = {name: getattr(self, name) for name in ("position", "targets_only", "stamp")}
        state |= {"rejected": dict(self.rejected), "leaks": dict(self.leaks)}
        state["lengths"] = {name: file.length for name, file in self._files.items()}
        self.journal.append(step.model_copy(update=state))

    def _check_share(self, is_end: bool) -> None:
        # The reasons are read from the file.
        self._files[QUARANTINE_NAME].flush()
        bad = sum(count for kind, count in self.rejected.items() if kind not in LEFT_OUT)
        self._bad_share.check(bad, self.position, is_end)


class TooManyBadRecords(UserError):
    """More records than allowed cannot be used."""


class AppendedFile:
    """A file of JSON lines that only grows, and begins again at a length that was written down; there is none as long
    as it would be empty.

    Args:
        length: bytes to keep of what is there.
    """

    def __init__(self, path: Path, length: int):
        self.path = path
        if length == 0:
            path.unlink(missing_ok=True)
        elif not path.is_file() or path.stat().st_size < length:
            raise UserError(
                f"{path} is missing or shorter than it was; restore it, or start over with --overwrite "
                "(overwrite=True)."
            )
        else:
            os.truncate(path, length)
        self.length = length
        self._stream: BinaryIO | None = None

    def append(self, line: dict) -> None:
        if self._stream is None:
            self._stream = self.path.open("ab")
        data = json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        self._stream.write(data)
        self.length += len(data)

    def flush(self) -> None:
        """Let others read all lines."""
        if self._stream is not None:
            self._stream.flush()

    def sync(self) -> None:
        """Put all lines on the disk."""
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def quarantine_line(source: SourceRecord, number: int, rejected: Rejected) -> dict:
    """What is kept of a record.

    Args:
        number: in the source, from 0.
    """
    raw = source.raw or (source.record.model_dump_json(exclude_none=True) if source.record is not None else "")
    sentences = {"origin": source.origin, "kind": rejected.kind, "reason": rejected.reason}
    cut = {name: shortened(text, _SENTENCE_CHARACTERS, _SENTENCE_CHARACTERS // 2) for name, text in sentences.items()}
    return {"number": number + 1, **cut, "record": shortened(raw, RAW_CHARACTERS)}


class BadShare:
    """Stops a build whose records are worse than their owner said they would be. What is left out on purpose is not
    bad.

    A single bad record is always forgiven, unless the share is 0.

    Args:
        total: records of the source, or None; the share is then that of the records read so far, once there are enough
            of them to judge by.
        overview: further sentences for the message.
    """

    def __init__(self, share: float, total: int | None, path: Path, overview: Callable[[], str] = str):
        self.share, self.total, self.path, self.overview = share, total, path, overview

    def check(self, bad: int, read: int, is_end: bool = False) -> None:
        """Raises TooManyBadRecords if ``bad`` of ``read`` records are too many."""
        of = read if is_end else max(read, _JUDGED_FROM if self.total is None else self.total)
        if too_many(bad, of, self.share):
            raise TooManyBadRecords(
                f"{bad} of the {read} records read cannot be used, and the share that may is {self.share:g}. "
                f"{self.overview()} {first_reasons(self.path)} {self.path} lists them all. Allow more with "
                "--max-bad-share (max_bad_share), and the same command resumes where it stopped; or correct them and "
                "start over."
            )


def first_reasons(path: Path) -> str:
    """A sentence about the first record of each kind in a quarantine file, of a few kinds."""
    first: dict[str, str] = {}
    with path.open("rb") as stream:
        for line in map(json.loads, stream):
            if line["kind"] not in LEFT_OUT and len(first) < _NAMED:
                first.setdefault(line["kind"], f"{line['origin']}: {line['reason']}")
    sentences = [shortened(reason, _REASON_CHARACTERS, _REASON_CHARACTERS // 3) for reason in first.values()]
    return " ".join(f"{sentence.removesuffix('.')}." for sentence in sentences)
