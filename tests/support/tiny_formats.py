"""Small files in the layouts that ms-swift, Tevatron and MMEB publish, with real pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
from pyarrow import parquet
from tiny_shards import picture


def write_swift(folder: Path, samples: int) -> Path:
    """An embedding data set of ms-swift in ``folder``, with its pictures beside it.

    Anchors are texts, and of every third line picture and text; positives are pictures; negatives, of which line i has
    i % 3, are texts and pictures in turn.
    """
    pictures = _write_pictures(folder / "pictures", samples)
    lines = []
    for i in range(samples):
        line = {
            "messages": [{"role": "user", "content": f"find picture {i}"}],
            "positive_messages": [[{"role": "user", "content": "<image>"}]],
            "positive_images": [[pictures[i]]],
        }
        if i % 3 == 2:
            line["messages"] = [
                {"role": "system", "content": "Find what belongs to it."},
                {"role": "user", "content": f"<image>picture {i}"},
            ]
            line["images"] = [pictures[i - 1]]
        if i % 3:
            line["negative_messages"] = [
                [{"role": "user", "content": f"not picture {i}"}],
                [{"role": "user", "content": "<image>"}],
            ][: i % 3]
            line["negative_images"] = [[], [pictures[i - 2]]][: i % 3]
        lines.append(line)
    return write_jsonl(folder / "swift.jsonl", lines)


def write_tevatron(folder: Path, samples: int, as_parquet: bool = False) -> tuple[Path, Path]:
    """Queries and corpus of Tevatron in ``folder``: JSONL that names pictures, or parquet that holds them as Hugging
    Face's data sets do.

    There are twice as many documents as queries. Query i is a text; its positive is document 2 i, a text and a picture;
    its negatives, of which it has i % 3, are the documents after it.
    """
    pictures = _write_pictures(folder / "pictures", 2 * samples)
    queries = [
        {
            "query_id": f"q{i}",
            "query_text": f"find document {i}",
            "query_image": None,
            "positive_document_ids": [f"d{2 * i}"],
            "negative_document_ids": [f"d{(2 * i + m + 1) % (2 * samples)}" for m in range(i % 3)],
        }
        for i in range(samples)
    ]
    corpus = [
        {"docid": f"d{i}", "document_text": f"document {i}", "document_image": pictures[i]} for i in range(2 * samples)
    ]
    if not as_parquet:
        return write_jsonl(folder / "queries.jsonl", queries), write_jsonl(folder / "corpus.jsonl", corpus)
    for document in corpus:
        name = document["document_image"]
        document["document_image"] = {"bytes": (folder / name).read_bytes(), "path": Path(name).name}
    return write_parquet(folder / "queries.parquet", queries), write_parquet(folder / "corpus.parquet", corpus)


MMEB_LABELS = ("red fox", "grey wolf", "brown bear", "white hare")


def write_mmeb_train(folder: Path, samples: int, as_parquet: bool = True) -> Path:
    """A training set of MMEB in ``folder``, in a directory of its own with both splits: pictures and their labels,
    every second row with a hard negative."""
    pictures = _write_pictures(folder / "images", samples)
    directory = folder / "ImageNet_1K"
    directory.mkdir(parents=True, exist_ok=True)
    for split, prompt in (
        ("original", "<|image_1|> Represent the given image for classification"),
        ("diverse_instruction", "Represent <|image_1|>."),
    ):
        rows = [
            {
                "qry": prompt,
                "qry_image_path": pictures[i],
                "pos_text": MMEB_LABELS[i % 4],
                "pos_image_path": "",
                "neg_text": MMEB_LABELS[(i + 1) % 4] if i % 2 else "",
                "neg_image_path": "",
            }
            for i in range(samples)
        ]
        write, ending = (write_parquet, "parquet") if as_parquet else (write_jsonl, "jsonl")
        write(directory / f"{split}-00000-of-00001.{ending}", rows)
    return directory


def write_mmeb_eval(folder: Path, queries: int) -> tuple[Path, Path]:
    """Two evaluation sets of MMEB in ``folder``, each in a directory of its own.

    In the first, a classification, all queries share one list of labels. In the second, a query has three candidates
    among ``queries + 2`` pictures with texts, of which the last two are no query's target.
    """
    pictures = _write_pictures(folder / "images", queries + 2)
    labels, phrases = [], []
    for i in range(queries):
        right = MMEB_LABELS[i % 4]
        query = {"qry_text": "<|image_1|> Identify the object shown in the image\n", "qry_img_path": pictures[i]}
        labels.append(
            {
                **query,
                "tgt_text": [right, *(label for label in MMEB_LABELS if label != right)],
                "tgt_img_path": [""] * 4,
            }
        )
        chosen = [i, (i + 1) % queries, queries + i % 2]
        query["qry_text"] = (
            f'<|image_1|> Select the portion of the image that follows the language expressions: "thing {i}"'
        )
        texts = [f'<|image_1|> Represent the given cropped image of the object: "thing {j}"\n' for j in chosen]
        phrases.append({**query, "tgt_text": texts, "tgt_img_path": [pictures[j] for j in chosen]})
    directories = folder / "VOC2007", folder / "RefCOCO-Matching"
    for directory, rows in zip(directories, (labels, phrases), strict=True):
        directory.mkdir(parents=True, exist_ok=True)
        write_parquet(directory / "test-00000-of-00001.parquet", rows)
    return directories


def write_jsonl(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict], group_rows: int = 3) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group_rows)
    return path


def _write_pictures(folder: Path, count: int) -> list[str]:
    """Names of pictures below the folder's own folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(picture(i))
    return [f"{folder.name}/{i}.png" for i in range(count)]
