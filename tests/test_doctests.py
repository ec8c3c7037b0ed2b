"""The examples in the docstrings and in the documentation do what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import entmask_ext

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "docs/ops.md"]
MODULES = ["entmask_ext"] + [
    f"entmask_ext.{module.name}" for module in pkgutil.iter_modules(entmask_ext.__path__) if module.name[0] != "_"
]
FUNCTIONS = [f for name in entmask_ext.__all__ if isinstance(f := getattr(entmask_ext, name), FunctionType)]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    run(doctest.DocTestFinder().find(importlib.import_module(name)))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_function_has_an_example(function: FunctionType) -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(function)
    assert test.examples


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks(document: str) -> None:
    """The ```python blocks, in order and with shared names: a session with >>> is a doctest, another block is run."""
    names = surroundings() if document == "README.md" else {}
    path = ROOT / document
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        line = block.string.count("\n", 0, block.start(1))
        if block[1].startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block[1], names, document, str(path), line)
            run([test])
            names = test.globs
        else:
            exec(compile("\n" * line + block[1], path, "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_files(document: str) -> None:
    path = ROOT / document
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert targets
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_headings_that_are_linked_to() -> None:
    text = (ROOT / "docs/ops.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }
    anchors = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert anchors
    assert anchors <= headings


def test_every_function_is_in_the_documentation() -> None:
    text = (ROOT / "docs/ops.md").read_text()
    headings = " ".join(re.findall(r"^## (.+)$", text, re.M)).split()
    assert {f.__name__ for f in FUNCTIONS} <= set(headings)


def run(tests: list[doctest.DocTest]) -> None:
    runner = doctest.DocTestRunner()
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def surroundings() -> dict[str, Any]:
    """What README's example takes for granted: a training loop's networks and images."""
    network = torch.nn.Conv2d(1, 4, 3, padding=1)
    return {"images": torch.rand(2, 1, 64, 64), "teacher": network, "student": network}
