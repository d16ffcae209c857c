"""Studies of the method: what its estimates and its settings do, measured against what is known."""
