"""Export room: a checkpoint becomes ONNX parts and a Triton model repository; the server launcher."""
