"""ONNX parts become TensorRT engines; numpy, the library and pycuda alone. docs/tensorrt.md: what was seen where."""
