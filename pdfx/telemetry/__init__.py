"""What a run measures of itself: metrics, phases of a step, FLOPs."""
