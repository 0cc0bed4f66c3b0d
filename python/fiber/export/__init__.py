"""Export models as graphs that run without this package: ONNX, `torch.export`, OpenVINO."""
