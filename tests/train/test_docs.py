"""The commands of README, docs/training.md and docs/methods.md run, cut down to two steps on a few small slices."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import write_tiny

from train.__main__ import main
from train.run import fit, recipes
from train.run.config import flatten
from train.run.methods import describe

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^    (?:\.venv/bin/)?(?:python|torchrun .*) -m train (.*?)(?:  +#.*)?$", re.MULTILINE)
SHORT = {
    "iterations": (2,), "size": (32, 32), "channels": (4, 8), "dropout": (0.0, 0.0), "labelled_batch": (2,),
    "unlabelled_batch": (2,), "patch_size": (8,), "validate_every": (1,), "device": ("cpu",),
}  # fmt: skip


def commands(document: str) -> list[str]:
    return COMMAND.findall((REPOSITORY / document).read_text())


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with path/to/acdc, and a phantom that is drawn in no time."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "path" / "to" / "acdc", patients=8, slices=1)
    root = write_tiny(tmp_path / "phantom", patients=8, slices=1)
    monkeypatch.setattr(fit, "ensure_phantom", lambda where: root)


@pytest.mark.parametrize("document", ["README.md", "docs/training.md", "docs/methods.md"])
def test_commands(document: str, workplace: None, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands(document)
    assert len(found) == {"README.md": 3, "docs/training.md": 12, "docs/methods.md": 4}[document]
    for line in found:
        arguments = [
            str(path)
            for argument in shlex.split(line)
            for path in (sorted(Path().glob(argument)) if "*" in argument else [argument])
        ]
        if "--help" in arguments:
            with pytest.raises(SystemExit, match="0"):
                main(arguments)
            continue
        if arguments[0] == "fit":
            steps = 3 if "--iterations" in arguments else 2
            for name, values in {**SHORT, "iterations": (steps,)}.items():
                arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
        assert main(arguments) == 0, (line, capsys.readouterr().err)


def test_the_page_of_methods_is_what_the_command_prints() -> None:
    """Else: what stands before "## adamix", then `python -m train methods`."""
    page = (REPOSITORY / "docs/methods.md").read_text()
    assert page.endswith("\n\n" + describe())
    flags = {name.replace("_", "-") for name in flatten(recipes.configure("fixmatch"))}
    assert set(re.findall(r"`--([a-z-]+)", page.split("\n## ")[0])) <= flags


def test_notebook(workplace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / "docs/training.md").read_text(), re.M | re.S)
    short = {name: values[0] if len(values) == 1 else values for name, values in SHORT.items()}
    monkeypatch.setattr(recipes, "configure", partial(recipes.configure, **short))
    exec(compile(block, "docs/training.md", "exec"), {})
    assert Path("runs/notebook/checkpoints/last.pt").is_file()
