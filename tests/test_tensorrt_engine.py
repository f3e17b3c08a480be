"""TensorRT execution, as far as it can be checked without a GPU."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ufr_edge.errors import BackendUnavailableError, ConfigError, InferenceError, InputFileError, ShapeError
from ufr_edge.runtime.engines import Engine, EngineInfo, open_session
from ufr_edge.runtime.engines.tensorrt_engine import MODULES, CudaBuffers, TensorRtSession

SIDE, MAX_BATCH = 8, 4


class FakeCuda:
    """The CUDA runtime over host memory; knows what is allocated."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.streams = 0
        self.fail: str | None = None

    def cudaSetDevice(self, index: int) -> tuple[int]:
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        self.streams += 1
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (700 if self.fail == "cudaStreamSynchronize" else 0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if self.fail == "cudaMalloc":
            return 2, 0
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory", 700: b"illegal address"}[status]


class FakeEngine:
    """An engine of one input and one output that halves; its own execution context."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.address: dict[str, int] = {}
        self.works = True

    def create_execution_context(self) -> FakeEngine:
        return self

    def get_tensor_name(self, index: int) -> str:
        return ("faces", "restored")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "faces" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "DataType.UINT8"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape or (-1, SIDE, SIDE, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, SIDE, SIDE, 3), (1, SIDE, SIDE, 3), (MAX_BATCH, SIDE, SIDE, 3)]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape if shape[0] <= MAX_BATCH else ()
        return bool(self.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        size = int(np.prod(self.shape))
        source = (ctypes.c_uint8 * size).from_address(self.address["faces"])
        to = (ctypes.c_uint8 * size).from_address(self.address["restored"])
        to[:] = [value // 2 for value in source]
        return self.works


def open_fake(cuda: FakeCuda, engine: FakeEngine) -> Engine:
    info = EngineInfo("tensorrt", "10.9", "cuda:0", "fp16", None, Path("x.engine"))
    trt = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="in"))
    return Engine(TensorRtSession(trt, None, engine, CudaBuffers(cuda, 0), info))


def test_batches_of_any_size_go_through_and_all_memory_comes_back() -> None:
    cuda = FakeCuda()
    engine = open_fake(cuda, FakeEngine())
    assert engine.info.side == SIDE
    for batch in (1, 4, 2):
        faces = np.random.default_rng(batch).integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
        np.testing.assert_array_equal(engine.infer(faces), faces // 2)
        assert len(cuda.memory) == 2
    engine.close()
    engine.close()
    assert not cuda.memory and cuda.streams == 0
    with pytest.raises(InferenceError, match="closed"):
        engine.infer(faces)


def test_a_batch_beyond_the_profile_names_the_limit() -> None:
    engine = open_fake(FakeCuda(), FakeEngine())
    with pytest.raises(ShapeError, match=r"\(1, 8, 8, 3\) to \(4, 8, 8, 3\), not \(5, 8, 8, 3\)"):
        engine.infer(np.zeros((5, SIDE, SIDE, 3), np.uint8))


@pytest.mark.parametrize(
    ("failing", "words"), [("cudaMalloc", "out of memory"), ("cudaStreamSynchronize", "illegal address")]
)
def test_a_cuda_error_is_told_in_cudas_words(failing: str, words: str) -> None:
    cuda = FakeCuda()
    engine = open_fake(cuda, FakeEngine())
    cuda.fail = failing
    with pytest.raises(InferenceError, match=f"{failing} failed: {words}"):
        engine.infer(np.zeros((1, SIDE, SIDE, 3), np.uint8))


def test_a_failed_execution_is_an_inference_error() -> None:
    fake = FakeEngine()
    engine = open_fake(FakeCuda(), fake)
    fake.works = False
    with pytest.raises(InferenceError, match=r"tensorrt failed on x\.engine"):
        engine.infer(np.zeros((1, SIDE, SIDE, 3), np.uint8))


@pytest.mark.parametrize("backend", list(MODULES))
def test_without_a_gpu_or_the_package_it_says_so(tmp_path: Path, backend: str) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    path = tmp_path / "face.engine"
    path.write_bytes(b"ftrt" * 100)
    with pytest.raises(BackendUnavailableError, match=r"pip install|NVIDIA GPU"):
        open_session(path, backend=backend)


def test_a_missing_engine_file_and_a_wish_for_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"gone\.engine"):
        open_session(tmp_path / "gone.engine", backend="tensorrt")
    with pytest.raises(ConfigError, match="built in"):
        open_session(tmp_path / "gone.engine", backend="tensorrt", input_shapes={"x": (1,)})


@pytest.mark.parametrize("module", list(MODULES.values()))
def test_the_fakes_have_no_method_that_tensorrt_lacks(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    trt = importlib.import_module(module)
    for name in ("set_input_shape", "set_tensor_address", "execute_async_v3", "get_tensor_shape"):
        assert hasattr(trt.IExecutionContext, name)
    for name in ("get_tensor_mode", "get_tensor_dtype", "get_tensor_profile_shape", "num_io_tensors"):
        assert hasattr(trt.ICudaEngine, name)
    assert str(trt.DataType.UINT8).rpartition(".")[2] == "UINT8"
    assert trt.TensorIOMode.INPUT != trt.TensorIOMode.OUTPUT
