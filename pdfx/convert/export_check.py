"""Proof that an export stands alone: re-embed a run's probe with it in a process where pdfx cannot be imported.

This file is run as a script by that process, so it imports torch and transformers only. Usage: ``export_check.py EXPORT
PROBE RESULT.safetensors``.
"""

import json
import sys
from pathlib import Path


def main(export: str, probe: str, result: str) -> None:
    # Whatever is installed here, the export must not lean on it.
    sys.modules["pdfx"] = None  # type: ignore[assignment]  # the documented way to forbid an import
    from safetensors.torch import save_file
    from transformers import AutoModel

    model = AutoModel.from_pretrained(export, trust_remote_code=True, dtype="auto").eval()
    outputs: dict[str, list] = {"paths": [], "fused": []}
    for entry in json.loads((Path(probe) / "items.json").read_text(encoding="utf-8")):
        images = [Path(probe) / name for name in entry["images"]]
        output = model.embed([{"text": entry["text"], "images": images}], side=entry["side"])
        for name, rows in outputs.items():
            rows.append(output[name])
    import torch

    save_file({name: torch.cat(rows).contiguous() for name, rows in outputs.items()}, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
