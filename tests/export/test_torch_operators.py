"""Exports that share torch's table of operators: the same files, and torch as it was afterwards."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _registration

from smidgen.export import torch_operators
from smidgen.export.torch_operators import read_once


def exported() -> bytes:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net, (torch.zeros(2, 1, 5, 5),), dynamo=True, external_data=False, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def test_a_table_is_read_once_and_the_files_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_operators, "_TABLES", {})
    own = vars(_registration.ONNXRegistry)["from_torchlib"]
    built = []

    def counted(cls, *args, **named):
        built.append(args)
        return own.__func__(cls, *args, **named)

    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", classmethod(counted))
    alone = exported()
    with read_once():
        assert exported() == alone
        with read_once():  # within another it changes nothing
            assert exported() == alone
    assert len(built) == 2  # alone, and once for all others
    assert isinstance(vars(_registration.ONNXRegistry)["from_torchlib"], classmethod)


def test_torch_is_as_before_after_a_fault() -> None:
    before = vars(_registration.ONNXRegistry)["from_torchlib"]
    with pytest.raises(ZeroDivisionError), read_once():
        raise ZeroDivisionError
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is before


def test_where_torch_has_no_such_table_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_registration, "ONNXRegistry")
    with read_once():
        pass
