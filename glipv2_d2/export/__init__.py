"""Models as graphs for other runtimes: ONNX, with the words as an input, and TorchScript."""
