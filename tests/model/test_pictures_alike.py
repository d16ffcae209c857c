"""A picture embeds alike wherever it is opened: in training, by the evaluation's reader, by ``pdfx embed``, and by an
export without pdfx."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from malformed.sound_pictures import sound_pictures
from PIL import Image
from safetensors.torch import load_file
from tiny_exports import tiny_export

from data_tools.build.builder import build_shards
from pdfx.data import ShardedDataset, iterate_inputs
from pdfx.embedder.exports import load_export
from pdfx.evaluate.embed import EmbedJob, embed_file
from pdfx.model.pictures import decode_image, image_header

SAME = 1e-6
FORMS = ("path", "name", "bytes", "opened", "loaded")
ALONE = """
import json, sys
sys.modules["pdfx"] = None
import torch
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel

def loaded(name):
    image = Image.open(name)
    image.load()
    return image

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
FORMS = {"path": Path, "name": str, "bytes": lambda name: Path(name).read_bytes()}
FORMS |= {"opened": Image.open, "loaded": loaded}
tensors, rows = {}, []
for number, name in enumerate(json.loads(Path(sys.argv[2]).read_text())):
    rows.append(model.embed([{"images": [list(FORMS.values())[number % 4](name)]}], "target").paths)
    for form, give in FORMS.items():
        inputs, _ = model.processor([{"text": "", "images": [give(name)]}], ["target"])
        tensors[f"{form} {number}"] = inputs["pixel_values"].contiguous()
save_file({"rows": torch.cat(rows), **tensors}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def cases():
    # The processor of LLaVA-NeXT takes no strips of 1 by 60000 pixels, and of the turns and damaged metadata some stand
    # for all.
    left_out = re.compile(
        "orientation-[0134578]|palette-(2|4|16)$|exif-|broken-profile|one-pixel|BMP|more-behind|GIF-screen|compress"
    )
    return [case for case in sound_pictures() if max(case.pixels.shape[:2]) <= 100 and not left_out.search(case.name)]


@pytest.fixture(scope="module")
def seen(cases, tmp_path_factory):
    """What each way gives of each case: embeddings [n, K, D], and pixel tensors where they are at hand."""
    folder = tmp_path_factory.mktemp("alike")
    export = tiny_export(folder / "model")
    pictures = folder / "pictures"
    pictures.mkdir()
    names = []
    for number, case in enumerate(cases):
        names.append(f"{number}.{image_header(case.data)[0]}")
        (pictures / names[-1]).write_bytes(case.data)
    (folder / "names.json").write_text(json.dumps([str(pictures / name) for name in names]))
    command = [
        sys.executable,
        "-P",
        "-c",
        ALONE,
        str(export),
        str(folder / "names.json"),
        str(folder / "alone.safetensors"),
    ]
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    alone = load_file(folder / "alone.safetensors")

    (folder / "items.jsonl").write_text("".join(json.dumps({"images": [name]}) + "\n" for name in names))
    embed_file(
        EmbedJob(export, folder / "items.jsonl", folder / "rows.npy", side="target", batch_size=1, images=pictures)
    )
    records = [{"query": {"text": "q"}, "target": {"images": [name]}, "target_id": name} for name in names]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    build_shards(folder / "records.jsonl", pictures, folder / "shards")

    model, dataset = load_export(export), ShardedDataset(folder / "shards")
    training = [model.processor([dataset.read(number).target], ["target"])[0] for number in range(len(cases))]
    evaluation = [batch.inputs for batch in iterate_inputs(dataset, range(len(cases)), "target", model.processor, 1)]
    meant = [model.processor([{"text": "", "images": [Image.fromarray(case.pixels)]}], ["target"])[0] for case in cases]
    with torch.no_grad():
        rows = {"training": torch.cat([model(inputs).paths for inputs in training]), "alone": alone["rows"]}
    rows["embed"] = torch.from_numpy(np.load(folder / "rows.npy"))
    inputs = {"training": training, "evaluate": evaluation, "meant": meant}
    pixels = {way: [one["pixel_values"] for one in found] for way, found in inputs.items()}
    return rows, pixels | {form: [alone[f"{form} {number}"] for number in range(len(cases))] for form in FORMS}


def test_the_formats_depths_turns_and_transparencies_are_among_the_cases(cases):
    names = " ".join(case.name for case in cases)
    for part in (
        *("PNG", "JPEG", "WEBP", "TIFF", "GIF"),
        "orientation-6",
        "sixteen-bit",
        "transparent",
        "palette",
        "one-bit",
        "cmyk",
        "dark-high",
        "animated",
    ):
        assert part in names


@pytest.mark.process
@pytest.mark.parametrize("way", ["evaluate", "meant", *FORMS])
def test_every_way_and_every_form_gives_the_model_the_same_pixels(cases, seen, way):
    _, pixels = seen
    compared = [
        (case, one, other)
        for case, one, other in zip(cases, pixels["training"], pixels[way], strict=True)
        if way != "meant" or not case.tolerance
    ]
    # Once Pillow has decoded it, a PNG of these no longer says how many bits its transparent level had.
    known = ("transparent-level-of-", "transparent-colour-of-") if way == "loaded" else ("no such name",)
    assert [
        case.name
        for case, one, other in compared
        if not torch.equal(one, other) and not any(part in case.name for part in known)
    ] == []
    assert len(compared) > 40


@pytest.mark.process
def test_every_way_gives_the_same_embedding(cases, seen):
    rows, _ = seen
    for way, found in rows.items():
        apart = (found - rows["training"]).abs().amax((1, 2)).tolist()
        assert [(way, case.name, far) for case, far in zip(cases, apart, strict=True) if not far <= SAME] == []
    # It means something only if different pictures embed apart.
    assert torch.pdist(rows["training"].flatten(1)).max() > 0.1


def test_upright_rgb_comes_back_itself_and_what_was_turned_is_not_turned_again(tmp_path):
    plain = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert decode_image(plain) is plain
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.crop((0, 0, 4, 2)).save(tmp_path / "turned.png", exif=exif)
    once = decode_image(tmp_path / "turned.png")
    assert once.size == (2, 4) and once.info == {}
    assert decode_image(once) is once
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(np.asarray(decode_image(opened.convert("RGB"))), np.asarray(once))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("absent.png", "'absent.png' cannot be read"),
        (Path("/dev/zero"), "'/dev/zero' is not a plain file"),
        ("a\0b", "cannot be read"),
        (np.zeros((2, 2, 3), np.uint8), "not as ndarray"),
        (None, "not as NoneType"),
        (Image.new("I", (2, 2)), "no standard range"),
        (Image.new("F", (2, 2)), "no standard range"),
        (Image.new("LAB", (2, 2)), "no plain way to RGB"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(given, reason):
    with pytest.raises(ValueError, match=reason):
        decode_image(given)


def test_an_image_whose_file_was_closed_is_refused(tmp_path):
    for kind in ("png", "jpg", "tif", "gif"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"a.{kind}")
        with Image.open(tmp_path / f"a.{kind}") as image:
            pass
        with pytest.raises(ValueError, match="was closed before its pixels were read"):
            decode_image(image)


def test_pictures_are_opened_with_a_list_of_formats_in_one_place():
    root, found = Path(__file__).parents[2], []
    for path in (path for folder in ("pdfx", "data_tools", "launch") for path in (root / folder).rglob("*.py")):
        found += [(path.name, line.strip()) for line in path.read_text().splitlines() if "Image.open(" in line]
    assert found == [("pictures.py", "image = Image.open(io.BytesIO(data), formats=_FORMATS)")]


@pytest.mark.process
def test_opening_pictures_imports_neither_torch_nor_transformers():
    code = (
        "import sys, pdfx.data.samples, pdfx.model.pictures; print(sorted({'torch', 'transformers'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
