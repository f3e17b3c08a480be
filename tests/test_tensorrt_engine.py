"""TensorRT execution, as far as it can be checked without a GPU."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ufr_edge.errors import BackendUnavailableError, ConfigError, InferenceError, InputFileError, ShapeError
from ufr_edge.runtime.engines import Engine, EngineInfo, open_session
from ufr_edge.runtime.engines.tensorrt_engine import MODULES, CudaBuffers, TensorRtSession
from ufr_edge.runtime.engines.tensorrt_kernels import KEEP, KernelCache, kernel_file

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


class FakeRuntime:
    """A runtime configuration and its kernel cache in one; a blob that begins with "7" is of this version."""

    def __init__(self) -> None:
        self.kernels = b""
        self.used: FakeRuntime | None = None

    def create_runtime_cache(self) -> FakeRuntime:
        return self

    def set_runtime_cache(self, cache: FakeRuntime) -> bool:
        self.used = cache
        return True

    def deserialize(self, blob: bytes) -> bool:
        if blob.startswith(b"7"):
            self.kernels = blob
        return blob.startswith(b"7")

    def serialize(self) -> bytes | None:
        return self.kernels or None


class FakeEngine:
    """An engine of one input and one output that halves; its own execution context."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.address: dict[str, int] = {}
        self.works = True
        self.config: FakeRuntime | None = None

    def create_execution_context(self, config: FakeRuntime | None = None) -> FakeEngine:
        self.config = config
        return self

    def create_runtime_config(self) -> FakeRuntime:
        return FakeRuntime()

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


def open_cached(path: Path) -> tuple[TensorRtSession, FakeRuntime]:
    """A session of TensorRT for RTX whose kernels lie at `path`, and its configuration."""
    info = EngineInfo("tensorrt-rtx", "1.7", "cuda:0", "fp16", None, Path("x.engine"))
    trt = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="in"))
    engine = FakeEngine()
    session = TensorRtSession(
        trt, None, engine, CudaBuffers(FakeCuda(), 0), info, kernels=KernelCache(engine, path)
    )
    assert engine.config is not None and engine.config.used is engine.config
    return session, engine.config


@pytest.mark.parametrize("before", [None, b"6 of another driver"])
def test_kernels_made_here_are_there_at_the_next_start(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "kernels" / "a.cache"
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)
    session, runtime = open_cached(path)
    assert runtime.kernels == b""
    runtime.kernels = b"7 kernels"  # as the first run makes them
    session.close()
    session.close()
    assert path.read_bytes() == b"7 kernels"
    assert path.stat().st_mode & 0o777 == 0o600  # they are code
    again, runtime = open_cached(path)
    assert runtime.kernels == b"7 kernels"
    inode = path.stat().st_ino
    again.close()
    assert path.stat().st_ino == inode  # nothing new, nothing written


def test_kernels_that_cannot_be_kept_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    session, runtime = open_cached(tmp_path / "file" / "a.cache")
    runtime.kernels = b"7 kernels"
    session.close()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_kernels_are_told_apart_and_those_of_long_ago_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UFR_CACHE", str(tmp_path / "cache"))
    engine = tmp_path / "x.engine"
    engine.write_bytes(b"one")
    first = kernel_file(engine, version="1.7", gpu="RTX 4070 / 12 GB")
    assert first.parent == tmp_path / "cache" / "kernels"
    assert first.name.endswith("-1.7-RTX-4070-12-GB.cache")
    assert kernel_file(engine, version="1.8", gpu="RTX 4070 / 12 GB") != first
    engine.write_bytes(b"two")
    assert kernel_file(engine, version="1.7", gpu="RTX 4070 / 12 GB") != first
    first.parent.mkdir(parents=True)
    for index in range(KEEP + 3):
        old = first.parent / f"{index:032x}-1.7-a.cache"
        old.write_bytes(b"7")
        os.utime(old, (index, index))
    session, runtime = open_cached(first)
    runtime.kernels = b"7 kernels"
    session.close()
    assert first.exists()
    assert len(list(first.parent.iterdir())) == KEEP
    assert not (first.parent / f"{3:032x}-1.7-a.cache").exists()


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
    if module == "tensorrt_rtx":
        for kind, names in (
            (trt.IRuntimeConfig, ("create_runtime_cache", "set_runtime_cache")),
            (trt.IRuntimeCache, ("serialize", "deserialize")),
            (trt.ICudaEngine, ("create_runtime_config",)),
        ):
            assert all(hasattr(kind, name) for name in names)
    assert str(trt.DataType.UINT8).rpartition(".")[2] == "UINT8"
    assert trt.TensorIOMode.INPUT != trt.TensorIOMode.OUTPUT
