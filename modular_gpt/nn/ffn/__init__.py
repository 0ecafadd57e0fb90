"""Feed-forward components, which transform each token by itself. One file per component."""
