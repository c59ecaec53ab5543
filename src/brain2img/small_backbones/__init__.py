"""How the small backbones of the simulated study are trained, and how good they must be."""
