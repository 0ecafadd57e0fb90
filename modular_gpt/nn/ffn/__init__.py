"""Feed-forward components, which transform each token independently of the others. One file per component."""
