"""Run networks of any framework from ONNX files, with onnxruntime; no Keras."""
