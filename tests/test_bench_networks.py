"""benchmarks/networks.py, with the smallest SwinIR in the place of the released one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import spandrel_nets as nets
from script_loading import load_script

from ufr_edge.restorers.spandrel_loader import SpandrelRestorer, build_from_state

TARGETS = ("onnx-fp32", "onnx-fp16", "openvino-fp16", "tensorrt-rtx-fp16")


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Any:
    script = load_script("networks")

    def tiny(name: str) -> SpandrelRestorer:
        return build_from_state(name, nets.swinir_state(nets.swinir()), Path("tiny.pth"))

    monkeypatch.setattr(script, "random_network", tiny)
    kept = tuple(target for target in script.TARGETS if target.name in TARGETS)
    assert len(kept) == len(TARGETS)
    monkeypatch.setattr(script, "TARGETS", kept)
    return script


@pytest.mark.slow
def test_a_network_is_measured_and_those_measured_before_stay(networks: Any, tmp_path: Path) -> None:
    for backend in ("openvino", "tensorrt_rtx"):
        pytest.importorskip(backend)
    out, page = tmp_path / "out", tmp_path / "networks.md"
    out.mkdir()
    before = [{"network": "gfpgan", "engine": "onnx-fp32", "refused": "no GatherND in layer x"}]
    (out / "gfpgan.json").write_text(json.dumps(before))
    assert networks.main(["swinir", "-o", str(out), "--page", str(page)]) == 0
    rows = {row["engine"].split()[0]: row for row in json.loads((out / "swinir.json").read_text())}
    assert tuple(rows) == TARGETS
    assert rows["onnx-fp32"]["psnr_db"] > 60 and rows["onnx-fp16"]["psnr_db"] > 40
    assert rows["openvino-fp16"]["psnr_db"] > 40  # in fp16 where the CPU has it, else its weights in fp32
    text = page.read_text()
    assert "| swinir | onnx-fp32 |" in text
    assert "| gfpgan | onnx-fp32 | refused | - | - | - | - |" in text
    assert "* gfpgan onnx-fp32: no GatherND in layer x" in text
    assert "by hand" not in text


def test_an_unknown_network_is_a_usage_error(networks: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        networks.main(["stylegan", "-o", str(tmp_path), "--page", str(tmp_path / "x.md")])
    assert ended.value.code == 2
    assert list(tmp_path.iterdir()) == []
