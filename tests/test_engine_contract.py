"""One contract for every engine that can run here: each backend, in each precision it offers on this machine.

The quick half runs two stored networks that change nothing; the slow half a restorer that was exported, quantized
and, for TensorRT for RTX, built. What this machine cannot run is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ufr_edge.calibration.compare import pattern_frames, psnr
from ufr_edge.doctor_nets import FLOAT_ONNX, INT8_ONNX
from ufr_edge.doctor_nets import SIDE as TINY_SIDE
from ufr_edge.errors import BackendUnavailableError, EngineMisfitError, InferenceError, ShapeError
from ufr_edge.runtime.engines import Engine, open_engine_file

Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An engine file, what it is to say of itself, and what it is to make of `faces`: `expected` to `psnr_db`."""

    path: Path
    backend: str
    precision: str
    side: int
    faces: Frames
    expected: Frames
    psnr_db: float

    def open(self) -> Engine:
        """Open it, or skip the test where it cannot run."""
        try:
            return open_engine_file(self.path, backend=self.backend, precision=self.precision, threads=1)
        except (BackendUnavailableError, EngineMisfitError) as exc:
            pytest.skip(str(exc))


class EngineContract:
    """What every engine must do. A subclass gives the fixture `case`."""

    @pytest.fixture
    def engine(self, case: Case) -> Iterator[Engine]:
        with case.open() as engine:
            yield engine

    @pytest.mark.parametrize("batch", [1, 2, 4])
    def test_bytes_in_and_bytes_out_close_to_the_reference(
        self, case: Case, engine: Engine, batch: int
    ) -> None:
        restored = engine.infer(case.faces[:batch])
        assert restored.dtype == np.uint8 and restored.shape == (batch, case.side, case.side, 3)
        assert psnr(restored, case.expected[:batch]) >= case.psnr_db

    def test_a_face_comes_out_the_same_alone_and_in_a_batch(self, case: Case, engine: Engine) -> None:
        together = engine.infer(case.faces[:4])
        alone = np.concatenate([engine.infer(case.faces[i : i + 1]) for i in range(4)])
        # Backends choose other kernels for other batches: equal up to their rounding.
        assert np.abs(together.astype(np.int16) - alone).max() <= 4
        assert psnr(together, alone) > 45

    def test_the_same_input_gives_the_same_output_and_old_results_stay(
        self, case: Case, engine: Engine
    ) -> None:
        first = engine.infer(case.faces[:1])
        kept = first.copy()
        engine.infer(case.faces[1:2])
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(engine.infer(case.faces[:1]), kept)

    def test_its_input_is_left_alone_and_may_be_any_view(self, case: Case, engine: Engine) -> None:
        faces = case.faces[:2].copy()
        flipped = faces[:, :, ::-1]
        got = engine.infer(flipped)
        np.testing.assert_array_equal(faces, case.faces[:2])
        np.testing.assert_array_equal(got, engine.infer(np.ascontiguousarray(flipped)))

    @pytest.mark.parametrize(
        ("change", "dtype"),
        [
            (lambda s: (s, s, 3), "uint8"),
            (lambda s: (1, s, s, 1), "uint8"),
            (lambda s: (1, 3, s, s), "uint8"),
            (lambda s: (1, 2 * s, 2 * s, 3), "uint8"),
            (lambda s: (1, s, 2 * s, 3), "uint8"),
            (lambda s: (0, s, s, 3), "uint8"),
            (lambda s: (1, s, s, 3), "float32"),
            (lambda s: (1, s, s, 3), "int8"),
        ],
    )
    def test_another_shape_or_dtype_is_refused(
        self, case: Case, engine: Engine, change: Any, dtype: str
    ) -> None:
        with pytest.raises(ShapeError, match=rf"uint8 \(B, {case.side}, {case.side}, 3\)"):
            engine.infer(np.zeros(change(case.side), dtype))
        assert engine.infer(case.faces[:1]).shape == (1, case.side, case.side, 3)  # and it still works

    def test_info_says_what_runs(self, case: Case, engine: Engine) -> None:
        info = engine.info
        assert (info.backend, info.precision, info.side) == (case.backend, case.precision, case.side)
        assert info.path == case.path and info.backend_version[0].isdigit() and info.device
        for word in (info.backend, info.backend_version, info.device, info.precision):
            assert word in info.describe()

    def test_closing_twice_is_fine_and_a_closed_engine_says_so(self, case: Case, engine: Engine) -> None:
        engine.close()
        engine.close()
        with pytest.raises(InferenceError, match="closed"):
            engine.infer(case.faces[:1])

    def test_two_of_them_do_not_disturb_each_other(self, case: Case, engine: Engine) -> None:
        before = engine.infer(case.faces[:1])
        with case.open() as other:
            np.testing.assert_array_equal(other.infer(case.faces[:1]), before)
        np.testing.assert_array_equal(engine.infer(case.faces[:1]), before)


QUICK = (
    ("onnxruntime", "fp32", 100.0),
    ("onnxruntime", "int8", 100.0),
    ("openvino", "fp32", 100.0),
    ("openvino", "fp16", 45.0),
    ("openvino", "bf16", 45.0),
    ("openvino", "int8", 50.0),
)


class TestStoredNetworks(EngineContract):
    @pytest.fixture(params=QUICK, ids=lambda value: f"{value[0]}-{value[1]}")
    def case(self, request: pytest.FixtureRequest, tmp_path: Path) -> Case:
        backend, precision, least = request.param
        path = tmp_path / "net.onnx"
        path.write_bytes(INT8_ONNX if precision == "int8" else FLOAT_ONNX)
        faces = np.random.default_rng(0).integers(0, 256, (4, TINY_SIDE, TINY_SIDE, 3), dtype=np.uint8)
        return Case(
            path=path,
            backend=backend,
            precision=precision,
            side=TINY_SIDE,
            faces=faces,
            expected=faces,
            psnr_db=least,
        )


EXPORTED = (
    ("onnx", "fp32", 60.0),
    ("onnx", "fp16", 45.0),
    ("onnx", "int8", 30.0),
    ("openvino", "fp32", 60.0),
    ("openvino", "bf16", 38.0),
    ("openvino", "int8", 30.0),
    ("tensorrt-rtx", "fp16", 40.0),
    ("tensorrt-rtx", "int8", 30.0),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny restorer in every format that can be built here, gate off: the contract is what is tested."""
    from export_helpers import ANY_PICTURES, tiny_restorer, write_faces

    from ufr_edge.export.bundle_export import ExportOptions, export_bundle
    from ufr_edge.export.requests import EngineRequest
    from ufr_edge.runtime.engines import installed_backends

    folder = tmp_path_factory.mktemp("contract")
    here = {"onnx", *installed_backends()}
    requests = [EngineRequest(format=f, precision=p) for f, p, _ in EXPORTED if f in here]
    options = ExportOptions(gate=None, calibration=ANY_PICTURES)
    faces = write_faces(folder / "faces", 24)
    restorer = tiny_restorer(folder)
    return export_bundle(
        restorer, folder / "a.ufr", formats=requests, calibration=faces, options=options
    ).path


@pytest.mark.slow
class TestExportedRestorer(EngineContract):
    @pytest.fixture(params=EXPORTED, ids=lambda value: f"{value[0]}-{value[1]}")
    def case(self, request: pytest.FixtureRequest, bundle: Path) -> Case:
        from ufr_edge.runtime.bundle import read_bundle

        kind, precision, least = request.param
        entries = {entry.name: entry for entry in read_bundle(bundle).manifest.engines}
        name = f"{kind}-{precision}"
        if name not in entries:
            pytest.skip(f"{kind} is not installed")
        side = read_bundle(bundle).manifest.restorer.side
        faces = pattern_frames(4, side, seed=3)
        with open_engine_file(bundle / "model.onnx", threads=1) as base:
            expected = base.infer(faces)
        return Case(
            path=bundle / entries[name].files[0],
            backend=entries[name].backend,
            precision=precision,
            side=side,
            faces=faces,
            expected=expected,
            psnr_db=least,
        )
