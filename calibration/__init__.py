"""Choosing calibration frames and quantizing to INT8. No torch."""
