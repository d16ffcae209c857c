from pdfx.config import load_config as load_config
from pdfx.convert.conversion import convert as convert
from pdfx.data.shards import ShardedDataset as ShardedDataset
from pdfx.evaluate import evaluate as evaluate
from pdfx.model.modeling import ParallelEmbedder as ParallelEmbedder
from pdfx.train import train as train

__version__: str
__all__ = ["ParallelEmbedder", "ShardedDataset", "convert", "evaluate", "load_config", "train"]
