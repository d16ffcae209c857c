"""Reading a recipe's YAML: bounded, without a key given twice, and with each value as the text that was written, so
that its setting's type decides."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import yaml

from pdfx.host.urls import scrubbed

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
"""Keys and values of a recipe, those counted again that an alias repeats; a long text counts as one per 100
characters."""
MAX_DEPTH = 30


class ConfigError(ValueError):
    """A mistake in a recipe or an override, in one sentence without the secrets of URLs."""

    def __init__(self, message: str):
        super().__init__(scrubbed(message))


class RecipeLoader(yaml.SafeLoader):
    """Plain values stay text, apart from ``null``. YAML 1.1 would read ``010`` as 8, ``1:30`` as 90, ``no`` as false
    and ``1e-4`` as text, also as names."""

    yaml_implicit_resolvers: dict = {}

    def __init__(self, stream: str):
        super().__init__(stream)
        self.depth = self.values = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent, index):
        """Raises a ComposerError if the document nests too deeply or its aliases make it too large, before any of it
        is built."""
        event, before = self.peek_event(), self.values
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(f"it nests more than {MAX_DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self.values += 1 + len(node.value) // 100
            self.sizes[id(node)] = self.values - before
        elif id(node) in self.sizes:
            self.values += self.sizes[id(node)]
        else:
            self.refuse(f"'&{event.anchor}' contains itself", event)
        if self.values > MAX_VALUES:
            self.refuse(f"it has more than {MAX_VALUES:,} values, counting those that its aliases repeat", event)
        return node

    def compose_mapping_node(self, anchor):
        """Raises a ComposerError if a key is given twice; what a merge (``<<``) brings may be overridden."""
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"the key '{key.value}' is given twice, in line {lines[key.value]} and in line {line}; keep one",
                )
            lines[key.value if isinstance(key, yaml.ScalarNode) else id(key)] = line
        return node

    def refuse(self, why: str, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        raise yaml.composer.ComposerError(None, None, f"{why} (line {line})")


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def parse_yaml(text: str):
    """The value of a YAML document, in which all scalars but null are text.

    Raises:
        yaml.YAMLError: it is not YAML, repeats a key, or is too large.
    """
    return yaml.load(text, RecipeLoader)


def read_small(path: Path) -> str:
    """The text of a regular file of at most ``MAX_BYTES``. Raises OSError or, if it is something else,
    ValueError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    with open(path, "rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return content.decode("utf-8")


def read_recipe(path: Path, why: str = "") -> dict:
    """The sections of one recipe's file.

    Args:
        why: it is read, for the message if it is missing.

    Raises:
        ConfigError: it is missing, is not a regular file of at most ``MAX_BYTES``, is not YAML, repeats a key, or holds
            no sections.
    """
    try:
        tree = parse_yaml(read_small(path))
    except FileNotFoundError:
        raise ConfigError(f"There is no recipe at {path}{why and f', {why}'}.") from None
    except OSError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a valid recipe: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} must hold sections such as 'model:' and 'train:', not "
            f"{'nothing' if tree is None else type(tree).__name__}."
        )
    return tree
