"""A checkpoint becomes ONNX heads, bodies and tails, each compared with PyTorch."""
