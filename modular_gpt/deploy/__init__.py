"""Deployment: torch.export and ONNX programs, GGUF files, and weights packed for inference on a CPU."""
