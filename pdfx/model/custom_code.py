"""Whose code runs: trusted Python files that register a backbone's classes, and nothing that other files name."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.utils import cached_file, find_adapter_config_file


def run_module_file(path: Path) -> ModuleType:
    """Import one file, once per process for the same content, whatever folder it lies in."""
    name = f"pdfx_module_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is not a Python file; its name must end in '.py'.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def load_export_modules(export, revision: str | None, trust_remote_code: bool) -> list[Path]:
    """Run the modules that an export lists in its configuration, if its backbone needs them, and return their files.

    Raises:
        ValueError: they are needed and ``trust_remote_code`` is not set.
    """
    settings = settings_without_code(export, revision)
    names = [Path(name).name for name in settings.get("modules", [])]
    needed = names and unknown_types(settings.get("backbone") or {})
    if needed and not trust_remote_code:
        raise ValueError(
            f"{export} brings code of its own ({', '.join(names)}); read it, then pass trust_remote_code=True."
        )
    files = [model_file(export, name, revision) for name in names]
    for file in files if needed else ():
        run_module_file(file)
    return files


def model_file(path, name: str, revision: str | None = None, subfolder: str = "") -> Path:
    """A file of a model, in its directory or in the hub's cache. Raises OSError if there is none."""
    return Path(str(cached_file(str(path), name, revision=revision, subfolder=subfolder)))


def require_modules(files: list[Path], names: list[str]) -> None:
    """Raises ValueError unless these are the files of a configuration's modules."""
    if {file.name for file in files} != set(names):
        raise ValueError(
            f"The model needs the modules {', '.join(names)}; say where they are by setting its module_files."
        )


def write_own_modules(directory: Path, files: list[Path]) -> None:
    """Let the backbone's own modules travel in an export: copied beside our code, and imported by it before the
    backbone's configuration is read.

    Raises:
        ValueError: the export has another file of that name.
    """
    if not files:
        return
    for path in files:
        copy = directory / path.name
        if copy.exists() and copy.read_bytes() != path.read_bytes():
            raise ValueError(
                f"model.modules names {path}, but the export has a file of that name of its own; rename it."
            )
        copy.write_bytes(path.read_bytes())
    imports = "".join(f"from .{path.stem} import __name__ as _{path.stem}  # noqa: E402, F401\n" for path in files)
    names = ", ".join(repr(path.name) for path in files)
    text = (
        '"""Importing the backbone\'s own files registers their classes with '
        f'transformers."""\n\n{imports}\nMODULE_FILES = ({names},)\n'
    )
    (directory / "custom_code_files.py").write_text(text, encoding="utf-8")
    # transformers 5.8 to 5.10 copy only what a file imports by itself.
    for name in ("configuration.py", "modeling.py"):
        if imports not in (own := (directory / name).read_text(encoding="utf-8")):
            (directory / name).write_text(f"{own}\n{imports}", encoding="utf-8")


def unknown_types(settings: dict) -> set[str]:
    """Model types in a backbone's configuration that transformers does not know yet."""
    parts = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    return {str(part["model_type"]) for part in parts if "model_type" in part} - set(CONFIG_MAPPING.keys())


def settings_without_code(path, revision: str | None) -> dict:
    """The configuration of a model as plain values.

    Raises:
        OSError: there is none.
        ValueError: transformers would fetch code that it names, or load an adapter beside it, and import what the
            adapter's settings name. Neither needs ``trust_remote_code`` there.
    """
    settings, _ = PretrainedConfig.get_config_dict(path, revision=revision)
    if find_adapter_config_file(str(path), revision=revision):
        raise ValueError(
            f"{path} is or holds a PEFT adapter (adapter_config.json); merge it into its model first, or remove "
            "that file."
        )
    if kernels := hub_kernels(settings):
        raise ValueError(
            f"{path} asks for {kernels[0]!r} as its attention, which is code from elsewhere; remove that from its "
            "config.json."
        )
    return settings


def hub_kernels(settings) -> list[str]:
    """Attention implementations that lie on the hub."""
    parts = [part for value in settings.values() if isinstance(value, dict) for part in hub_kernels(value)]
    return parts + [
        str(value) for name, value in settings.items() if name.endswith("attn_implementation") and "/" in str(value)
    ]
