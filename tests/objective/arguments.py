"""A batch by its tensors' names as the arguments of the objective."""

from pdfx.objective import PairEmbeddings, PairIdentities


def arguments(data: dict, step: int | None = None) -> tuple:
    paths, fused = (
        PairEmbeddings(*(data[side + suffix] for side in ("query", "target", "negatives"))) for suffix in ("", "_fused")
    )
    names = ("target_ids", "negative_ids", "valid", "negative_valid")
    identities = PairIdentities(*(data[name] for name in names))
    return paths, fused, identities, data["log_temperature"], data["step"] if step is None else step
