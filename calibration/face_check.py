"""Are there faces in a calibration folder? Asked of a sample, with the runtime's own detector."""

from __future__ import annotations

from collections.abc import Sequence

from numpy import uint8
from numpy.typing import NDArray

from ufr_edge.runtime.faces.detect import DetectorConfig, FaceDetector

SAMPLE = 12
_THRESHOLD = 0.3  # below the runtime's own: blurred and noisy crops are welcome here
_LONG_SIDE = 192


def count_faces(images: Sequence[NDArray[uint8]], *, sample: int = SAMPLE) -> tuple[int, int]:
    """How many of at most `sample` images, evenly taken, hold a face that fills a third of a side; and of how many.

    images: uint8 RGB (S, S, 3). Takes about 20 ms an image. Raises BackendUnavailableError without a detector.
    """
    step = max(len(images) / sample, 1.0)
    looked = [images[int(i * step)] for i in range(min(sample, len(images)))]
    with FaceDetector(DetectorConfig(long_side=_LONG_SIDE, threshold=_THRESHOLD), device="cpu") as detector:
        found = sum(
            any(min(face.box[2:] - face.box[:2]) > image.shape[0] / 3 for face in detector.detect(image))
            for image in looked
        )
    return found, len(looked)
