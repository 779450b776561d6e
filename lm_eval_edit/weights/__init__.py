"""An edit as a change of weights: deltas in factors, and a model's parameters under them, put back bit for bit."""
