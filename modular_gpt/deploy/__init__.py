"""Deployment: torch.export and ONNX programs, and weights packed for oneDNN."""
