"""Statistics of gradients of every dtype and layout, in one pass for those that are alike."""

from __future__ import annotations

import pytest
import torch
from lora_train.instrument.attach import gradients
from lora_train.instrument.attach.gradients import dense_gradients, gradient_rows
from lora_train.kernels.statistics.tensor_stats import FIELDS
from torch import nn


def test_rows_of_gradients_that_are_missing_sparse_or_of_several_dtypes():
    parameters = [
        nn.Parameter(torch.zeros(n, 2, dtype=d))
        for n, d in ((2, torch.float32), (3, torch.bfloat16), (4, torch.float64))
    ]
    for value, parameter in enumerate(parameters, start=1):
        parameter.grad = torch.full_like(parameter, float(value))
    sparse = nn.Parameter(torch.zeros(5, 2))
    sparse.grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2, 2), (5, 2))
    rows = gradient_rows([*parameters, sparse, nn.Parameter(torch.zeros(7))], torch.device("cpu"))
    assert rows[:, FIELDS.index("sumsq")].tolist() == [4 * 1.0, 6 * 4.0, 8 * 9.0, 2 * 4.0, 0.0]
    assert rows[:, FIELDS.index("absmax")].tolist() == [1.0, 2.0, 3.0, 2.0, 0.0]
    assert rows[[0, 1, 2, 4], FIELDS.index("n")].tolist() == [4, 6, 8, 7]
    assert gradient_rows([], torch.device("cpu")).shape == (0, len(FIELDS))


def test_those_that_are_alike_are_read_in_one_pass(monkeypatch: pytest.MonkeyPatch):
    passes: list[list[torch.dtype]] = []
    own = gradients.multi_tensor_stats
    monkeypatch.setattr(gradients, "multi_tensor_stats", lambda t: (passes.append([x.dtype for x in t]), own(t))[1])
    parameters = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float32)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    assert gradient_rows(parameters, torch.device("cpu"))[:, FIELDS.index("sumsq")].tolist() == [3.0, 3.0, 3.0]
    assert sorted(passes, key=len) == [[torch.bfloat16], [torch.float32] * 2]


def test_gradients_are_handed_out_as_plain_tensors():
    parameter, sparse = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(5, 2))
    sparse.grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2, 2), (5, 2))
    found = dense_gradients([parameter, sparse])
    assert [gradient.tolist() for gradient in found] == [[0.0, 0.0], [[2.0, 2.0]]]
