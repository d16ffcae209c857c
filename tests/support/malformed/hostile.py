"""Every reader on files that lie about their kind or size, under a memory and a time limit: run as a program, prints
one line of JSON for each.

Usage: ``python -m malformed.hostile FOLDER``
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SPARE = 1 << 29
"""Bytes of memory that all readers together may take beyond what the imports took."""
SECONDS = 30
"""A reader's time; most take a few milliseconds, and the machine may be busy."""
CLAIMED = 300_000_000
HUGE = 1 << 40

MANY = ("many values", "many keys", "many members", "a record of")
"""Cases of large files, which only the first reader is tried on."""
OTHERS = ("check", "check --full", "describe", "merge", "split")

Damage = Callable[[Path], None]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def holes(path: Path) -> None:
    path.touch()
    os.truncate(path, HUGE)


def folder(path: Path) -> None:
    path.mkdir()


def content(data: bytes) -> Damage:
    return lambda path: path.write_bytes(data)


def npy(shape: tuple, dtype: str = "<i8", data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def tensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, shape: object, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


KINDS: dict[str, Damage] = {
    "a pipe": pipe,
    "an endless device": endless,
    "a terabyte of holes": holes,
    "a folder": folder,
}
JSONS: dict[str, Damage] = KINDS | {
    "deep nesting": content(b"[" * 1_000_000),
    "deep objects": content(b'{"version":' * 1_000_000),
    "many values": content(b'{"shards":[' + b"{}," * (5 << 20) + b"{}]}"),
    "many keys": content(b"{" + b'"a":1,' * 2_200_000 + b'"b":1}'),
    "a number of a megabyte": content(b'{"version":' + b"9" * (1 << 20) + b"}"),
    "no object": content(b"[1]"),
    "no text": content(bytes(range(256))),
}
TENSORS: dict[str, Damage] = KINDS | {
    "a header without end": content(tensors({}, length=1 << 62)),
    "a header of 30 MB": content(tensors(b"[" * 30_000_000)),
    "many tensors": content(tensors(b"{" + b'"a":{},' * 3_000_000 + b'"b":{}}')),
    "a nested header": content(tensors(b'{"a":' * 100_000)),
    "no object": content(tensors([1])),
    "no tensor": content(tensors({"a": 1})),
    "overlapping tensors": content(tensors({"a": tensor(0, 16, [4]), "b": tensor(0, 16, [4])})),
    "partly overlapping tensors": content(tensors({"a": tensor(0, 12, [3]), "b": tensor(4, 16, [3])})),
    "a gap": content(tensors({"a": tensor(0, 4, [1]), "b": tensor(8, 16, [2])})),
    "a name twice": content(tensors(b'{"a":%s,"a":%s}' % ((json.dumps(tensor(0, 16, [4])).encode(),) * 2))),
    "a huge shape": content(tensors({"a": tensor(0, 16, [1 << 62, 1 << 62])})),
    "a huge empty shape": content(tensors({"a": tensor(0, 0, [1 << 62, 1 << 62, 0])}, b"")),
    "many dimensions": content(tensors({"a": tensor(0, 16, [1 << 62] * 300_000)})),
    "a negative shape": content(tensors({"a": tensor(0, 16, [-2, -2])})),
    "a shape of fractions": content(tensors({"a": tensor(0, 16, [4.0])})),
    "a shape of truths": content(tensors({"a": tensor(0, 4, [True])}, bytes(4))),
    "backward places": content(tensors({"a": tensor(16, 0, [4])})),
    "places behind the end": content(tensors({"a": tensor(HUGE, HUGE + 16, [4])})),
    "metadata of another kind": content(tensors({"__metadata__": {"a": [1]}, "a": tensor(0, 16, [4])})),
}


def index_of(shards: Path, **changes: object) -> bytes:
    from pdfx.data.schema import ShardEntry, ShardIndex, fingerprint

    entry = json.loads((shards / "index.json").read_text())["shards"][0] | changes
    entries = [ShardEntry.model_validate(entry)]
    return (
        ShardIndex(shards=entries, samples=entries[0].samples, fingerprint=fingerprint(entries))
        .model_dump_json()
        .encode()
    )


def shard_cases(sound: Path) -> Iterator[tuple[str, dict[str, Damage]]]:
    """Names of cases, and what takes the place of which files."""
    for name, damage in JSONS.items():
        yield f"index: {name}", {"index.json": damage}
        yield f"statistics: {name}", {"00000_stats.json": damage}
    for name, damage in KINDS.items():
        yield f"tar: {name}", {"00000.tar": damage}
        yield f"offsets: {name}", {"00000.idx.npy": damage}
    claim = content(index_of(sound, samples=CLAIMED, bytes=1 << 48))
    yield "an index that claims many samples", {"index.json": claim}

    def sparse_tar(path: Path) -> None:
        path.touch()
        os.truncate(path, 1 << 43)

    def sparse_offsets(path: Path) -> None:
        path.write_bytes(npy((CLAIMED + 1,)))
        os.truncate(path, len(npy((CLAIMED + 1,))) + 8 * CLAIMED)

    yield (
        "a claim with a tar of holes",
        {"index.json": content(index_of(sound, samples=CLAIMED, bytes=1 << 43)), "00000.tar": sparse_tar},
    )
    yield "a claim with a shorter tar", {"index.json": claim, "00000.idx.npy": sparse_offsets}
    size = (sound / "00000.idx.npy").stat().st_size
    for name, data in {
        "offsets that claim many": npy((CLAIMED,)),
        "offsets that claim all memory": npy((1 << 40, 1 << 20)),
        "offsets of objects": npy((9,), "|O"),
        "offsets of large items": npy((9,), "|V1000000000"),
        "offsets of damage": b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 5000,
    }.items():
        yield name, {"00000.idx.npy": content(data.ljust(size, b"\0")[: max(size, len(data))])}


def sample_cases() -> Iterator[tuple[str, bytes]]:
    """Names and bytes of samples."""

    def packed(*members: tuple[str, int, bytes, bytes]) -> bytes:
        blocks = []
        for name, size, kind, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = size, kind
            blocks += [info.tobuf(tarfile.GNU_FORMAT), data, bytes(-len(data) % 512)]
        return b"".join(blocks)

    record = b'{"key":"a","target":{"text":"t"},"target_id":"i","query":{"text":"q"}}'
    yield "a member of a terabyte", packed(("a.json", HUGE, b"0", record))
    yield "attributes of a terabyte", packed(("a", HUGE, b"x", b""), ("a.json", len(record), b"0", record))
    yield "attributes of 64 MB", packed(("a", 1 << 26, b"x", b"9" * (1 << 26)), ("a.json", len(record), b"0", record))
    yield "a name of 64 MB", packed(("a", 1 << 26, b"L", b"n" * (1 << 26)), ("a.json", len(record), b"0", record))
    yield "nested attributes", packed(*[("a", 0, b"x", b"")] * 3_000, ("a.json", len(record), b"0", record))
    yield "a file of holes", packed(("a.json", 10, b"S", bytes(512)))
    yield (
        "many members",
        packed(("a.json", len(record), b"0", record), *[(f"a.{i}", 0, b"0", b"") for i in range(17_000)]),
    )
    for name, data in {
        "a record of many values": b'{"target":{"text":"t","images":[' + b"1," * 5_000_000 + b"1]}}",
        "a record of many keys": b"{" + b'"a":1,' * 2_200_000 + b'"b":1}',
        "a record of 80 MB": b'{"target":{"text":"' + b"t" * 80_000_000 + b'"}}',
        "a nested record": b'{"target":' * 100_000,
    }.items():
        yield name, packed(("a.json", len(data), b"0", data))


def shards_of_sample(out: Path, data: bytes) -> None:
    from data_tools.build.shard_writer import STATISTICS
    from pdfx.data.schema import ShardEntry, ShardIndex, fingerprint

    out.mkdir()
    entry = ShardEntry(name="00000.tar", samples=1, bytes=len(data) + 1024, sha256="0" * 64)
    (out / "00000.tar").write_bytes(data + bytes(1024))
    np.save(out / "00000.idx.npy", np.array([0, len(data)]))
    stats = dict.fromkeys(STATISTICS, 0) | {"samples": 1, "bytes": entry.bytes}
    (out / "00000_stats.json").write_text(json.dumps(stats))
    (out / "index.json").write_text(
        ShardIndex(shards=[entry], samples=1, fingerprint=fingerprint([entry])).model_dump_json()
    )


def shard_readers(out: Path) -> dict[str, Callable[[Path], object]]:
    from data_tools.inspect.check import check_shards
    from data_tools.inspect.describe import describe_shards
    from data_tools.rearrange.merge import merge_shards
    from data_tools.rearrange.split import Share, SplitSettings, split_shards
    from pdfx.data import ShardedDataset

    def read(path: Path) -> object:
        dataset = ShardedDataset(path)
        return dataset.read_many(range(3 if len(dataset) > 3 else len(dataset)))

    return {
        "read": read,
        "check": lambda path: check_shards(path),
        "check --full": lambda path: check_shards(path, full=True),
        "describe": describe_shards,
        "merge": lambda path: merge_shards([path], out / "merged"),
        "split": lambda path: split_shards(path, SplitSettings((Share.parse(f"{out / 'part'}=1"),))),
    }


def run_cases(run: Path, work: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Readers of what runs and exports consist of, each on each hostile file."""
    from pdfx.checkpoint.directory import newest_whole, open_checkpoint
    from pdfx.checkpoint.parameters import SavedParameters
    from pdfx.checkpoint.resume import read_objective
    from pdfx.config.deepspeed_file import read_json
    from pdfx.config.run_files import CHECKPOINTS
    from pdfx.embedder.exports import load_export
    from pdfx.evaluate.report import read_run
    from pdfx.faults.run_lock import read_holder
    from pdfx.host.tensor_files import TensorFile, require_sound_files

    checkpoint = next((run / CHECKPOINTS).iterdir())

    def at(path: Path, damage: Damage, reader: Callable[[Path], object]) -> Callable[[], object]:
        def attempt() -> object:
            path.unlink(missing_ok=True)
            damage(path)
            try:
                return reader(path)
            finally:
                path.rmdir() if path.is_dir() else path.unlink()

        return attempt

    (work / "export").mkdir()
    for name, damage in JSONS.items():
        yield f"manifest: {name}", at(checkpoint / "manifest.json", damage, lambda path: open_checkpoint(path.parent))
        if name in MANY:
            continue
        if name in KINDS:
            yield f"newest: {name}", at(checkpoint / "manifest.json", damage, lambda path: newest_whole(run)[1])
        yield f"export: {name}", at(work / "export/config.json", damage, lambda path: load_export(path.parent))
        yield f"DeepSpeed: {name}", at(work / "zero.json", damage, read_json)
        yield (
            f"metrics: {name}",
            at(
                run / "metrics.jsonl",
                lambda path, damage=damage: (damage(path), newline(path)),
                lambda path: read_run(run),
            ),
        )
        yield f"lock: {name}", at(work / "lock.json", damage, lambda path: read_holder(path) or "nobody")
    for name, damage in TENSORS.items():
        yield f"tensors: {name}", at(work / "a.safetensors", damage, TensorFile)
        if damage is not folder:
            yield (
                f"backbone: {name}",
                at(work / "export/model.safetensors", damage, lambda path: require_sound_files(path.parent)),
            )
    for name, damage in (
        KINDS | {"damage": content(b"PK" + bytes(100)), "a pickle": content(b"\x80\x02c__builtin__\neval\n.")}
    ).items():
        yield f"objective: {name}", at(work / "objective.pt", damage, read_objective)
    for name, parts in {
        "nested": "[" * 100_000,
        "negative": '{"a":[-4,[4]]}',
        "of huge shapes": f'{{"a":[0,{[1 << 62] * 9}]}}',
        "of texts": '{"a":["0","4"]}',
    }.items():
        header = {"__metadata__": {"parts": parts}, "master/a": tensor(0, 16, [4])}
        yield (
            f"parts: {name}",
            at(
                work / "rank-00000-of-00001.safetensors", content(tensors(header)), lambda path: SavedParameters([path])
            ),
        )


def newline(path: Path) -> None:
    if path.is_file() and path.stat().st_size < 1 << 30:
        path.write_bytes(path.read_bytes() + b"\n")


def outcome(reader: Callable[[], object]) -> tuple[str, str]:
    """What became of it, and the sentence."""
    from pdfx.data import SampleError
    from pdfx.errors import UserError

    signal.alarm(SECONDS)
    try:
        result = reader()
    except UserError as error:
        return "refused", str(error)
    except OSError as error:
        # What the command line makes a sentence of.
        return ("refused", f"{error.filename}: {error.strerror}.") if error.filename else ("OSError", str(error))
    except BaseException as error:  # whatever comes is what the test is to show
        return type(error).__name__, str(error)[:500]
    finally:
        signal.alarm(0)
    items = result if isinstance(result, list) else [result]
    problems = [str(item) for item in items if isinstance(item, (str, SampleError))]
    if isinstance(result, dict) and result.get("unusable"):
        problems = ["1 sample is not usable"]
    return ("found", problems[0]) if problems else ("read", repr(result)[:200])


class TooSlowError(BaseException):
    """No reader catches it."""


def too_slow(*_: object) -> None:
    raise TooSlowError


def main(work: Path) -> None:
    from checkpoint.made import make_checkpoint
    from tiny_shards import make_shards

    sound = make_shards(work, samples=8, samples_per_shard=8)
    run = work / "run"
    make_checkpoint(run, 1)
    (run / "config.yaml").write_text("{}")
    shard_work, others = shard_readers(work), list(run_cases(run, work))
    import torch  # noqa: F401 - its share of the address space is not the readers'

    used = (
        int(
            next(
                line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize")
            ).split()[1]
        )
        << 10
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    signal.signal(signal.SIGALRM, too_slow)

    def tell(case: str, reader: str, result: tuple[str, str]) -> None:
        print(json.dumps([case, reader, *result]), flush=True)

    def read_shards(case: str, shards: Path, *left_out: str) -> None:
        for reader, function in shard_work.items():
            if reader in left_out:
                continue
            tell(case, reader, outcome(lambda function=function: function(shards)))
            for made in ("merged", "part"):
                shutil.rmtree(work / made, ignore_errors=True)
        shutil.rmtree(shards)

    for case, damages in shard_cases(sound):
        shutil.copytree(sound, work / "case")
        for name, damage in damages.items():
            (work / "case" / name).unlink()
            damage(work / "case" / name)
        # Others read no statistics; and all read an index in the same way.
        left_out = (
            ("read", "describe", "split") if case.startswith("statistics") else OTHERS if case.endswith(MANY) else ()
        )
        read_shards(case, work / "case", *left_out)
    for case, data in sample_cases():
        shards_of_sample(work / "case", data)
        read_shards(case, work / "case", "check", *(OTHERS if case.startswith(MANY) else ()))
    for case, reader in others:
        tell(*case.partition(": ")[::2], outcome(reader))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
