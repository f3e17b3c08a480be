"""ufr-edge: adapt a blind face restorer to one camera, export it, run it on the device.

This module stays free of heavy imports: `ufr_edge.runtime` is loaded on devices without torch.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
