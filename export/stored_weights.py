"""The weights a bundle was made from, beside its ONNX: what an adaptation on site starts from."""

from __future__ import annotations

from pathlib import Path

from ufr_edge.errors import InputFileError
from ufr_edge.files import sha256_file
from ufr_edge.restorers.edge import EdgeUNet
from ufr_edge.restorers.files import WEIGHTS_NAME, save_restorer, shipped_files
from ufr_edge.restorers.loading import AnyRestorer
from ufr_edge.runtime.bundle import Bundle


def write_weights(folder: Path, restorer: AnyRestorer) -> tuple[str, ...]:
    """Write the weights as fp16 into the bundle `folder`; return their file names: none for networks of others, whose
    weights are large and may not be passed on."""
    if not isinstance(restorer.model, EdgeUNet):
        return ()
    path = folder / WEIGHTS_NAME
    save_restorer(
        restorer.model, path, arch=restorer.arch, side=restorer.side, meta=restorer.meta, storage="fp16"
    )
    return (WEIGHTS_NAME,)


def bundle_weights(bundle: Bundle) -> Path:
    """Where the weights of a bundle lie: in it, else the shipped ones of the same sha256.

    Raises BundleError when the stored file is damaged, InputFileError when they are in neither place.
    """
    if WEIGHTS_NAME in bundle.manifest.files:
        bundle.verify([WEIGHTS_NAME])
        return bundle.file(WEIGHTS_NAME)
    wanted = bundle.manifest.restorer.weights_sha256
    for path in shipped_files():
        if sha256_file(path) == wanted:
            return path
    msg = (
        f"{bundle.path} carries no weights to go on from, and none of the shipped ones has its sha256 {wanted[:12]}…. "
        "Give --weights RUN_OR_FILE, or export the bundle again."
    )
    raise InputFileError(msg)
