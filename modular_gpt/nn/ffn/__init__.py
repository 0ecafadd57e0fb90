"""Feed-forward parts: what each token computes by itself. One file per component."""
