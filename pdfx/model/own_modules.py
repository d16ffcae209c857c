"""Run Python files that register a backbone's own classes with transformers."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from transformers import CONFIG_MAPPING
from transformers.utils import cached_file


def run_module_file(path: Path) -> ModuleType:
    """Import one file, once per process for the same content, whatever folder it lies in."""
    name = f"pdfx_module_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def load_export_modules(export, trust_remote_code: bool) -> None:
    """Run the modules that an export lists in its configuration, where its backbone needs them.

    Raises:
        ValueError: they are needed and ``trust_remote_code`` is not set.
    """
    settings = json.loads(Path(cached_file(str(export), "config.json")).read_text(encoding="utf-8"))
    files = [Path(name).name for name in settings.get("modules", [])]
    if not files or not _unknown_types(settings.get("backbone") or {}):
        return
    if not trust_remote_code:
        raise ValueError(f"{export} brings code of its own ({', '.join(files)}); read it, then pass trust_remote_code=True.")
    for name in files:
        run_module_file(Path(cached_file(str(export), name)))


def _unknown_types(settings: dict) -> set[str]:
    """Model types in a backbone's configuration that transformers does not know yet."""
    parts = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    return {part["model_type"] for part in parts if "model_type" in part} - set(CONFIG_MAPPING.keys())
