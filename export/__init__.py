"""Restorer to ONNX to device engines, with a parity check and a bundle writer."""
