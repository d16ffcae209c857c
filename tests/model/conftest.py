import pytest
import torch
from tiny_models import FAMILIES, tiny_backbone

from pdfx.model import ParallelEmbedder


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {family: tiny_backbone(family, root / family) for family in FAMILIES}


@pytest.fixture
def embedder_of(backbones):
    """Builds an embedder on a tiny backbone; prefixes are wide, so that they matter."""

    def build(family: str, paths: int = 3, prefix_length: int = 5, dtype=torch.float32, **settings) -> ParallelEmbedder:
        return ParallelEmbedder.from_backbone(
            str(backbones[family]),
            paths=paths,
            prefix_length=prefix_length,
            prefix_init_std=0.5,
            dtype=dtype,
            **settings,
        ).eval()

    return build
