"""From texts and images to the tensors that a backbone reads; transformers' own processor does the work."""

import difflib
from collections.abc import Mapping

import torch
from PIL import Image
from torch.nn import functional

from .families import Family
from .pictures import decode_image
from .texts import is_blank

PROMPT_DEFAULTS = {
    "query_instruction": "",
    "target_instruction": "",
    "max_text_tokens": 512,
    "image_min_pixels": None,
    "image_max_pixels": None,
    "image_grid_pinpoints": None,
}


IMAGE_TENSORS = ("pixel_values", "image_grid_thw", "image_sizes")
"""What processors make of images: a row per image; of Qwen2-VL's ``pixel_values`` one per patch."""


HEAD_TOKENS = 256
HEAD_CHARACTERS = 8
"""A long text is tokenised in its first characters alone: so many per token, and until so many tokens stand behind
those that are kept. What is kept is then the same as of the whole text, because a tokenizer's decisions do not reach
that far back."""


class ItemError(ValueError):
    """An item cannot be embedded.

    Attributes:
        number: its place among the items given, from 0.
        reason: the part of a sentence that says why.
    """

    def __init__(self, number: int, reason: str):
        super().__init__(f"items[{number}] cannot be embedded: {reason}.")
        self.number, self.reason = number, reason

    def __reduce__(self):
        return type(self), (self.number, self.reason)


class InputProcessor:
    """Turn items ``{"text": str, "images": [picture, ...]}`` into a padded batch of backbone inputs; a picture is
    whatever ``decode_image`` takes.

    The prompt is: one marker per image, the side's instruction, the text, the tokenizer's end token (whose state is the
    ``last`` embedding). That form is ours. A text over ``max_text_tokens`` is cut at the text; images are never cut.
    Strings with a meaning in the prompt are blanked out of texts.

    Args:
        processor: transformers' processor of the backbone (tokenizer and image processor).
        family: the backbone's family.
        settings: the fields of ``PROMPT_DEFAULTS``.

    Raises:
        ValueError: a setting that this family ignores, or that is unknown.
    """

    def __init__(self, processor, family: Family, settings: dict):
        unknown = settings.keys() - PROMPT_DEFAULTS.keys()
        if unknown:
            raise ValueError(f"Unknown input settings: {', '.join(sorted(unknown))}.")
        settings = {**PROMPT_DEFAULTS, **settings}
        for name, value in settings.items():
            if name.startswith("image_") and value is not None and name not in family.image_settings:
                raise ValueError(
                    f"inputs.{name} has no effect on a {family.model_type} backbone; its image settings are "
                    f"{', '.join(family.image_settings)}."
                )
        self.processor = processor
        self.family = family
        self.settings = settings
        self.tokenizer = processor.tokenizer
        self.end = self.tokenizer.eos_token
        if self.end is None:
            raise ValueError(
                "The backbone's tokenizer has no end-of-sequence token, which marks the embedding's place."
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.end
        bound_images(processor.image_processor, settings)

    def __call__(self, items: list[dict], sides: list[str]) -> tuple[dict[str, torch.Tensor], int]:
        """Inputs for n items and the number of texts that were cut.

        Args:
            items: texts and images; either may be empty.
            sides: ``query`` or ``target`` for each item, which chooses the instruction.

        Returns:
            ``input_ids``, ``attention_mask`` ``[n, T]`` and, if there are images, the family's pixel tensors.
        """
        texts, truncated = [], 0
        for item, side in zip(items, sides, strict=True):
            text, cut = self.cut(self.clean(item["text"]))
            truncated += cut
            texts.append(
                self.family.image_prompt * len(item["images"]) + self.settings[f"{side}_instruction"] + text + self.end
            )
        images = [decode_image(image) for item in items for image in item["images"]]
        inputs = self.processor(text=texts, images=images or None, padding=True, return_tensors="pt")
        return dict(inputs), truncated

    def prepare(self, items: list[dict], side: str, first: int = 0) -> tuple[dict[str, torch.Tensor], int]:
        """The same for items of one side, the first of which has the number ``first``.

        Raises:
            ItemError: a picture cannot be opened, or the backbone's processor refuses an item.
        """
        try:
            return self(items, [side] * len(items))
        except Exception:
            for number, item in enumerate(items, start=first):
                try:
                    self([item], [side])
                except (
                    Exception
                ) as error:  # the backbone's processor is not ours: what it raises on odd pictures or texts is open
                    raise ItemError(
                        number, " ".join(str(error).split())[:300].removesuffix(".") or type(error).__name__
                    ) from error
            raise

    def select_items(
        self, inputs: dict[str, torch.Tensor], chosen: list[int], images: list[int]
    ) -> dict[str, torch.Tensor]:
        """The inputs of the ``chosen`` items, in that order, as if they alone had been processed.

        Only LLaVA-NeXT's crops stay filled up to the largest image of the call; the backbone leaves the filling out.

        Args:
            inputs: of n items, from one call.
            images: number of images of each of the n items.
        """
        starts = torch.tensor([0, *images]).cumsum(0)
        pictures = [start for item in chosen for start in range(int(starts[item]), int(starts[item + 1]))]
        kept = inputs["attention_mask"][chosen].any(0).nonzero()
        columns = slice(int(kept.min()), int(kept.max()) + 1)
        selected = {}
        for name, tensor in inputs.items():
            if name not in IMAGE_TENSORS:
                selected[name] = tensor[chosen, columns]
            elif pictures and name == "pixel_values" and "image_grid_thw" in inputs:
                patches = tensor.split(inputs["image_grid_thw"].prod(-1).tolist())
                selected[name] = torch.cat([patches[picture] for picture in pictures])
            elif pictures:
                selected[name] = tensor[pictures]
        return selected

    def clean(self, text: str) -> str:
        """The text without strings that the prompt gives a meaning."""
        for reserved in self.family.reserved:
            text = text.replace(reserved, " ")
        return text

    def cut(self, text: str) -> tuple[str, bool]:
        """The text's first ``max_text_tokens`` tokens, and whether something was cut."""
        limit = self.settings["max_text_tokens"]
        if text.isascii() and len(text) < limit:
            return text, False
        wanted, size = limit + HEAD_TOKENS, HEAD_CHARACTERS * (limit + HEAD_TOKENS)
        while True:
            offsets = self.tokenizer(text[:size], add_special_tokens=False, return_offsets_mapping=True)[
                "offset_mapping"
            ]
            if size >= len(text) or len(offsets) >= wanted:
                break
            size *= 4
        if len(offsets) <= limit:
            return text, False
        return text[: offsets[limit - 1][1]], True

    def is_cut(self, text: str) -> bool:
        """Whether an item loses a part of this text."""
        return self.cut(self.clean(text))[1]

    def dummy(self) -> dict[str, torch.Tensor]:
        """The smallest item with an image, for a rank that has none when others have one."""
        return self([{"text": "", "images": [Image.new("RGB", (28, 28))]}], ["query"])[0]

    def save_pretrained(self, directory) -> None:
        self.processor.save_pretrained(directory)


def checked_items(items: list[dict], side: str) -> list[dict]:
    """What a caller gave, as items with both a text and a list of images.

    Raises:
        ValueError: it is not a list of items, or there is no such side.
        ItemError: an item is not a mapping, has an unknown key or nothing to embed, or one of its values has the wrong
            type.
    """
    if side not in ("query", "target"):
        raise ValueError(f"side must be 'query' or 'target', not '{side}'.")
    if isinstance(items, (str, bytes, dict)) or not hasattr(items, "__iter__"):
        raise ValueError(f"The items must be a list of dicts with 'text' and 'images', not one {type(items).__name__}.")
    checked = [_checked_item(number, item) for number, item in enumerate(items)]
    if not checked:
        raise ValueError("There are no items to embed.")
    return checked


def _checked_item(number: int, item: dict) -> dict:
    if not isinstance(item, Mapping):
        raise ItemError(number, f"it must be a dict with 'text' and 'images', not {type(item).__name__}")
    for key in item:
        if key not in ("text", "images"):
            nearest = difflib.get_close_matches(str(key), ("text", "images"), n=1, cutoff=0.0)[0]
            raise ItemError(number, f"it has the key {key!r}, which is unknown; the nearest one is {nearest!r}")
    text, images = item.get("text"), item.get("images")
    text, images = "" if text is None else text, [] if images is None else images
    if not isinstance(text, str):
        raise ItemError(number, f"'text' must be a str, not {type(text).__name__}")
    if not isinstance(images, (list, tuple)):
        raise ItemError(
            number, f"'images' must be a list, not {type(images).__name__}; put a single picture into a list"
        )
    if is_blank(text) and not images:
        raise ItemError(number, "there is neither a text nor an image; give at least one of 'text' and 'images'")
    return {"text": text, "images": list(images)}


def bound_images(image_processor, settings: dict) -> None:
    """Set the resolution bounds on transformers' image processor."""
    if settings["image_grid_pinpoints"] is not None:
        image_processor.image_grid_pinpoints = [list(pair) for pair in settings["image_grid_pinpoints"]]
    smallest, largest = settings["image_min_pixels"], settings["image_max_pixels"]
    size = dict(image_processor.size)
    if smallest is not None:
        size["shortest_edge"] = smallest
    if largest is not None:
        size["longest_edge"] = largest
    if smallest is not None or largest is not None:
        if size["shortest_edge"] > size["longest_edge"]:
            raise ValueError(
                f"image_min_pixels ({size['shortest_edge']}) is larger than image_max_pixels ({size['longest_edge']})."
            )
        image_processor.size = size


def append_inputs(inputs: dict[str, torch.Tensor], extra: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs of n items and of m more as inputs of n + m; ``inputs`` may lack image tensors that ``extra`` has."""
    result = {}
    for name, second in extra.items():
        second = second.to(inputs["input_ids"].device)
        if name not in inputs:
            first = torch.zeros_like(inputs["input_ids"]) if second.shape == extra["input_ids"].shape else second[:0]
        else:
            first = inputs[name]
        if second.shape == extra["input_ids"].shape:
            # Masked places on the right, so that their token does not matter.
            width = max(first.shape[1], second.shape[1])
            first, second = (functional.pad(tensor, (0, width - tensor.shape[1])) for tensor in (first, second))
        result[name] = torch.cat((first, second))
    return result
