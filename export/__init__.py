"""Export room: a checkpoint becomes ONNX parts, TensorRT engines, a Triton model repository and a running server."""
