"""Terms that keep the K paths apart, and figures that say how far apart they are."""
