"""What every importer guarantees, whatever its format."""

from __future__ import annotations

import json

from data_tools.sources.base import Source, SourceRecord


def check_source(source: Source, records: int, problems: int) -> list[SourceRecord]:
    """All records, of which so many have a problem, after checking that the sequence can be entered anywhere."""
    everything = list(source.records())
    assert len(everything) == records and source.total() in (None, records)
    for start in (0, 1, records // 2, records - 1, records, records + 5):
        assert list(source.records(start)) == everything[start:], f"from {start} on"
    for record in everything:
        assert (record.record is None) == (record.problem is not None)
        assert record.origin and "\n" not in record.origin
        if record.problem is not None:
            assert record.problem and not record.problem.endswith(".") and not record.problem[0].isupper()
        else:
            used = {name for _, side in record.record.sides() for name in side.images}
            assert set(record.pictures) <= used
    assert sum(record.problem is not None for record in everything) == problems
    identity = source.identity()
    assert json.loads(json.dumps(identity)) == identity
    return everything


def problems_of(records: list[SourceRecord]) -> list[str]:
    return [record.problem for record in records if record.problem is not None]
