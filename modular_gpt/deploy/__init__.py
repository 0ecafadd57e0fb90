"""Other runtimes: torch.export and ONNX programs, weights packed for oneDNN."""
