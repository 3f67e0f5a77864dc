"""The exported network answers as the original does, for any number of servers; what cannot be exported says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.export import VERB, export_onnx
from tests.support.option_reads import OptionReads
from tests.support.steering_cases import trained_bundle

pytestmark = pytest.mark.thorough


def test_onnx_answers_as_torch(tmp_path: Path) -> None:
    bundle = trained_bundle()
    bundle.save(tmp_path / "bundle")
    assert export_onnx(tmp_path / "bundle", tmp_path / "policy.onnx", checks=20) < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(7).normal(size=(5, bundle.problem.row_size)).astype(np.float32)
    wanted = bundle.net(torch.from_numpy(rows))[0].detach().numpy()
    assert session.run(None, {"rows": rows})[0] == pytest.approx(wanted, abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "policy.onnx"]


def test_every_option_is_read(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path / "bundle")
    flags = {"bundle": tmp_path / "bundle", "out": tmp_path / "policy.onnx"}
    with OptionReads(load_options(VERB.options, assignments=["checks=1"], flags=flags)) as reads:
        assert VERB.run(reads.options) == 0
    assert reads.unread() == []


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 2
    assert "option 'bundle' is missing" in capsys.readouterr().err
    assert main(["export", str(tmp_path)]) == 2
    assert "not a bundle" in capsys.readouterr().err
