"""Face detection, five-point alignment and paste-back."""
