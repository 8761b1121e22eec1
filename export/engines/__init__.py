"""ONNX parts become TensorRT engines; numpy, tensorrt and pycuda alone.

What calls the GPU has not been run: it was checked against the Python bindings of TensorRT 8.6.0, 10.13.3 and 11.4
alone.
"""
