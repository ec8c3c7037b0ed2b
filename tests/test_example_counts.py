"""How many operations the examples' plain and fused forms make, and how often they wait: the table of docs/ops.md."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from examples import copy_paste, cutmix, exchange

ROOT = Path(__file__).resolve().parent.parent


class Calls(TorchDispatchMode):
    """Operations but for views, and how often the host would wait for a GPU.

    It waits to copy a tensor, and to learn how many elements a mask selects.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.calls = self.waits = 0

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            self.waits += 1
            return tensor

        monkeypatch.setattr(torch.Tensor, "cpu", copied)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not func.is_view
        if func.name().startswith(("aten::index.", "aten::index_put")):
            self.waits += any(x is not None and x.dtype == torch.bool for x in args[1])
        self.waits += func.name() == "aten::nonzero"
        return func(*args, **(kwargs or {}))


def counted(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, *given: Any) -> tuple[int, int]:
    with monkeypatch.context() as patch, Calls(patch) as count:
        function(*given)
    return count.calls, count.waits


def test_the_table_of_calls_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    (mixing, boxes), (pasting, box), exchanging = cutmix.batch(), copy_paste.batch(), exchange.batch()
    found = {
        "cutmix": (cutmix.plain, (*mixing, boxes), cutmix.fused, (*mixing, torch.tensor(boxes))),
        "copy_paste": (copy_paste.plain, (*pasting, box), copy_paste.fused, (*pasting, torch.tensor([box]))),
        "exchange": (exchange.plain, exchanging, exchange.fused, exchanging),
    }
    rows = re.findall(
        r"^\| \[`(\w+)\.py`\].*\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", (ROOT / "docs/ops.md").read_text(), re.M
    )
    expected = {name: tuple(map(int, numbers)) for name, *numbers in rows}
    assert expected == {
        name: counted(plain, monkeypatch, *given) + counted(fused, monkeypatch, *tensors)
        for name, (plain, given, fused, tensors) in found.items()
    }
