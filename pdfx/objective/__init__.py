"""The training objective on embeddings: contrast over all ranks, and terms that keep the K paths apart."""

from pdfx.objective.objective import Objective
from pdfx.objective.pairs import PairEmbeddings, PairIdentities, Terms

__all__ = ["Objective", "PairEmbeddings", "PairIdentities", "Terms"]
