"""pdfx: training of parallel multimodal embeddings under mutual-information minimisation."""

__version__ = "0.1.0"
