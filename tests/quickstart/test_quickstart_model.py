import efficientnet_lite  # noqa: F401  (registers the tower)
import pytest
import torch
from make_model import make_model
from PIL import Image
from transformers import AutoModel, AutoProcessor


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(path)
    return path


@pytest.fixture(scope="module")
def model(directory):
    return AutoModel.from_pretrained(directory)


@pytest.fixture(scope="module")
def processor(directory):
    return AutoProcessor.from_pretrained(directory)


def test_the_saved_model_reads_a_picture_and_a_text_together(model, processor):
    inputs = processor(
        text=["<image>\na red apple</s>"], images=[Image.new("RGB", (128, 128), "red")], return_tensors="pt"
    )
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 10
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    assert states.shape == (1, inputs["input_ids"].shape[1], 256)
    assert states.isfinite().all()


def test_another_picture_changes_the_last_state(model, processor):
    states = []
    for colour in ("red", "blue"):
        inputs = processor(text=["<image></s>"], images=[Image.new("RGB", (128, 128), colour)], return_tensors="pt")
        with torch.no_grad():
            states.append(model(**inputs).last_hidden_state[0, -1])
    assert (states[0] - states[1]).abs().max() > 1e-2


def test_texts_become_words_of_a_real_vocabulary_and_pad_and_image_tokens_are_their_own(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer("waving hand", add_special_tokens=False)["input_ids"]) == "waving hand"
    assert (
        len(
            {
                tokenizer.pad_token_id,
                tokenizer.eos_token_id,
                tokenizer.bos_token_id,
                tokenizer.convert_tokens_to_ids("<image>"),
            }
        )
        == 4
    )


def test_words_start_with_pretrained_embeddings(model, processor):
    ids = processor.tokenizer(["dog", "cat", "airplane"], add_special_tokens=False)["input_ids"]
    dog, cat, plane = (
        torch.nn.functional.normalize(model.get_input_embeddings().weight[row].mean(0), dim=0) for row in ids
    )
    assert dog @ cat > dog @ plane + 0.1
