"""The ONNX backend: ONNX Runtime, with gradient graphs that are built from the ONNX file itself."""
