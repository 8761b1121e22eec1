"""ONNX parts become TensorRT engines; numpy, tensorrt and pycuda alone."""
