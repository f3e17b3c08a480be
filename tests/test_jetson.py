"""What Jetson's tools print, read back. The texts were recorded on boards by others; nothing here ran on one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ufr_edge.runtime.jetson import (
    JETPACKS,
    Jetson,
    build_memory_mib,
    find_jetpack,
    jetson_problems,
    largest_workspace_mib,
    parse_clocks,
    parse_packages,
    parse_power_mode,
    parse_release,
    parse_tegrastats,
    read_jetson,
)

DOCS = Path(__file__).parents[1] / "docs" / "jetson.md"

RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
)
PACKAGES = (
    "nvidia-jetpack\t6.2.1+b38\nnvidia-l4t-core\t36.4.3-20250107174145\nlibnvinfer10\t10.3.0.30-1+cuda12.5\n"
)
POWER = "NV Power Mode: 25W\n1\n"
ORIN_CLOCKS = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super
Online CPUs: 0-5
cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=729600 IdleStates: WFI=1 c7=1
cpu1:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=1190400 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=69
NV Power Mode: 25W
"""
LOCKED_CLOCKS = """\
Online CPUs: 0-1
cpu0: Online=1 Governor=schedutil MinFreq=921600 MaxFreq=921600 CurrentFreq=921600 IdleStates: WFI=0 c7=0
cpu2: Online=0 Governor=schedutil MinFreq=102000 MaxFreq=921600 CurrentFreq=921600 IdleStates: WFI=0 c7=0
GPU MinFreq=614400000 MaxFreq=614400000 CurrentFreq=614400000
EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=1
"""
THOR_CLOCKS = "gpu-gpc-0 MinFreq=1575000000 MaxFreq=1575000000 CurrentFreq=1575000000\n"
ORIN_STATS = (
    "01-04-2025 16:02:59 RAM 1273/7620MB (lfb 1x4MB) SWAP 286/3810MB (cached 1MB) "
    "CPU [0%@1036,0%@1036,1%@1036,0%@1036,0%@729,0%@729] GR3D_FREQ 12% cpu@45.875C soc2@45.843C gpu@45.437C "
    "tj@46.312C VDD_IN 4968mW/4968mW VDD_CPU_GPU_CV 436mW/436mW VDD_SOC 1708mW/1708mW\n"
)
NANO_STATS = (
    "RAM 2345/3964MB (lfb 1x4MB) SWAP 123/4096MB (cached 0MB) CPU [25%@1479,30%@1479] EMC_FREQ 0%@1600 "
    "GR3D_FREQ 50%@921 APE 25 PLL@41C CPU@42.5C PMIC@100C GPU@40C POM_5V_IN 4567/4567\n"
)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The files of a board with Jetson Linux 36.4.3."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(RELEASE)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit Super\0")
    return tmp_path


def tools(command: Sequence[str]) -> str:
    """The recorded output of each tool."""
    return {
        "dpkg-query": PACKAGES,
        "nvpmodel": POWER,
        "jetson_clocks": ORIN_CLOCKS,
        "timeout": ORIN_STATS * 3,
    }[command[0]]


def test_the_release_file() -> None:
    assert parse_release(RELEASE) == "36.4.3"
    assert parse_release("# R39 (release), REVISION: 2.1, GCID: 1") == "39.2.1"
    assert parse_release("# R32 (release), REVISION: 7, BOARD: x") == "32.7"
    assert parse_release("") is None and parse_release("Ubuntu 22.04") is None


def test_package_versions() -> None:
    found = parse_packages(
        PACKAGES + "libnvinfer-plugin10:arm64\t10.3.0.30-1+cuda12.5\nno-version\t\ngarbage\n"
    )
    assert found["nvidia-jetpack"] == "6.2.1"
    assert found["nvidia-l4t-core"] == "36.4.3"
    assert found["libnvinfer10"] == found["libnvinfer-plugin10"] == "10.3.0.30"
    assert "no-version" not in found and parse_packages("") == {}


def test_the_power_mode() -> None:
    assert parse_power_mode(POWER) == "25W"
    assert parse_power_mode("NVPM VERB: Current mode: NV Power Mode: MAXN\n0\n") == "MAXN"
    assert parse_power_mode("nvpmodel: command not found") is None


def test_clocks() -> None:
    found = parse_clocks(ORIN_CLOCKS)
    assert found is not None
    assert (found.locked, found.gpu_mhz, found.gpu_max_mhz) == (False, 306, 918)
    held = parse_clocks(LOCKED_CLOCKS)  # a core that is off does not count
    assert held is not None and held.locked and held.gpu_mhz == 614
    thor = parse_clocks(THOR_CLOCKS)
    assert thor is not None and thor.locked and thor.gpu_max_mhz == 1575
    assert parse_clocks("Error: Run this script(/usr/bin/jetson_clocks) as a root user") is None


def test_tegrastats() -> None:
    found = parse_tegrastats("RAM 1/2MB\n" + ORIN_STATS)
    assert found is not None
    assert (found.ram_used, found.ram_total, found.swap_used, found.gpu_percent) == (1273, 7620, 286, 12)
    assert found.watts == pytest.approx(4.968)
    assert found.celsius["gpu"] == pytest.approx(45.437) and found.celsius["tj"] == pytest.approx(46.312)
    nano = parse_tegrastats(NANO_STATS)
    assert nano is not None and nano.gpu_percent == 50
    assert nano.watts == pytest.approx(4.567)
    assert parse_tegrastats("") is None


def test_a_board_is_described(board: Path) -> None:
    found = read_jetson(board, run=tools)
    assert found is not None
    assert found.board == "NVIDIA Jetson Orin Nano Developer Kit Super"
    assert found.describe() == "JetPack 6.2.1 (L4T 36.4.3), TensorRT 10.3.0.30, mode 25W, clocks not locked"
    assert found.stats is not None and found.stats.ram_total == 7620


def test_a_board_whose_tools_say_nothing(board: Path) -> None:
    found = read_jetson(board, run=lambda command: "")
    assert found is not None
    assert (
        found.describe()
        == "JetPack 6.2 (L4T 36.4.3), TensorRT not installed, mode unknown, clocks unknown (needs root)"
    )


def test_another_machine_is_no_jetson(tmp_path: Path) -> None:
    assert read_jetson(tmp_path, run=lambda command: pytest.fail(f"{command} was run")) is None


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("36.4.3", "6.2"),
        ("36.4.7", "6.2.1"),
        ("35.6.2", "5.1.4"),
        ("39.2.1", "7.2"),
        ("36.2.0", None),
        ("32.7.1", None),
    ],
)
def test_an_unlisted_release_is_that_of_the_one_before_it(l4t: str, jetpack: str | None) -> None:
    found = find_jetpack(l4t)
    assert (found.version if found else None) == jetpack
    assert find_jetpack(None) is None


def jetson(**changes: object) -> Jetson:
    fields: dict[str, object] = {
        "board": "NVIDIA Jetson",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "tensorrt": "10.3.0.30",
        "power_mode": "MAXN",
        "clocks": None,
        "stats": None,
    }
    return Jetson(**(fields | changes))  # type: ignore[arg-type]


def test_a_board_on_which_all_fits() -> None:
    assert jetson_problems(jetson(), tensorrt="10.3.0", rtx=None, python="3.10.12") == ()


@pytest.mark.parametrize(
    ("changes", "tensorrt", "python", "words"),
    [
        ({"tensorrt": None}, None, "3.10.12", "apt-get install nvidia-jetpack"),
        ({}, None, "3.10.12", "--system-site-packages"),
        ({}, "10.16.1", "3.10.12", "pip uninstall tensorrt"),
        ({}, "10.3.0", "3.12.1", "binds TensorRT to Python 3.10"),
        (
            {"tensorrt": "8.6.2", "l4t": "36.3.0", "jetpack": "6.0"},
            "8.6.2",
            "3.10.12",
            "Flash JetPack 6.1 or newer",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_with_what_mends_it(
    changes: dict[str, object], tensorrt: str | None, python: str, words: str
) -> None:
    (line,) = jetson_problems(jetson(**changes), tensorrt=tensorrt, rtx=None, python=python)
    assert words in line and "\n" not in line


def test_rtx_does_not_belong_on_a_board() -> None:
    (line,) = jetson_problems(jetson(), tensorrt="10.3.0", rtx="1.7.1", python="3.10.12")
    assert "pip uninstall tensorrt-rtx" in line


def test_the_memory_of_a_build_grows_with_workspace_and_weights() -> None:
    small, large = 20 << 20, 600 << 20
    assert build_memory_mib(small, workspace_mib=2048) < build_memory_mib(large, workspace_mib=2048)
    fits = largest_workspace_mib(small, available_mib=5700)
    assert fits > 0 and build_memory_mib(small, workspace_mib=fits) <= 5700
    assert build_memory_mib(small, workspace_mib=fits + 64) > 5700
    assert largest_workspace_mib(large, available_mib=3000) == 0


def test_the_guide_prints_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for item in JETPACKS:
        row = f"| {item.version} | {item.l4t} | {item.tensorrt} | {item.cuda} | {item.python} |"
        assert row in text
    assert "not been run on" in text


def test_the_table_is_in_order() -> None:
    keys = [[int(part) for part in item.l4t.split(".")] for item in JETPACKS]
    assert keys == sorted(keys)
