"""Checkpoints: every damage and every part that is not as train fit writes it is an error that names the file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import command, tiny_config, write_tiny

from train.__main__ import main
from train.data.description import Description, description_path, read_description, write_description
from train.run import checkpoint
from train.run.config_file import to_json


def whole(root: Path) -> dict[str, Any]:
    """A checkpoint's parts, but for what only the network reads."""
    generator = torch.Generator().manual_seed(0)
    weights = {"a.weight": torch.randn(5, 7, generator=generator), "a.bias": torch.randn(5, generator=generator)}
    return {
        "step": 4,
        "best": {"step": 4, "dice": 0.5, "dice_1": 0.5, "dice_mean": 0.5},
        "last": {"step": 4, "dice_1": 0.5, "dice_mean": 0.5},
        "config": to_json(tiny_config(root, root)),
        "data_set": {"scaling": "none", "classes": []},
        "student": weights,
        "teacher": weights,
        "optimizer": {"state": {}, "param_groups": []},
        "scaler": {},
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    plain = [name for name in one if name not in ("student", "teacher")]
    return all(one[name] == other[name] for name in plain) and all(
        torch.equal(one[name][key], other[name][key]) for name in ("student", "teacher") for key in one[name]
    )


def test_every_bit_is_checked(tmp_path: Path) -> None:
    """torch.load reads another weight where a bit of one is flipped."""
    path, state = tmp_path / "last.pt", whole(tmp_path)
    checkpoint.save(path, state)
    content = path.read_bytes()
    assert same(checkpoint.load(path, state), state)
    for at in (content.index(state["student"]["a.weight"].numpy().tobytes()) + 3, *range(0, len(content), 41)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << random.Random(at).randrange(8)
        path.write_bytes(flipped)
        try:  # the zip archive's padding, times and attributes may be anything
            assert same(checkpoint.load(path, state), state), at
        except ValueError as error:
            assert str(error).startswith(f"checkpoint {path}") and "\n" not in str(error)


@pytest.mark.parametrize("cut", [1, 22, 300, 2000])
def test_a_cut_off_checkpoint_is_named(cut: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    checkpoint.save(path, whole(tmp_path))
    path.write_bytes(path.read_bytes()[:-cut])
    root = write_tiny(tmp_path / "data")
    assert main(["evaluate", str(tmp_path / "run"), "--checkpoint", "last", "--device", "cpu"]) == 1
    assert main(command(tiny_config(root, tmp_path / "run"))) == 1
    said = capsys.readouterr().err
    assert said.count(f"error: checkpoint {path} cannot be read: ") == 2 == len(said.splitlines())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("step", "x", "'step' must be a whole number of at least 0, got 'x'"),
        ("step", -1, "'step' must be a whole number of at least 0, got -1"),
        ("step", 1.5, "'step' must be a whole number of at least 0, got 1.5"),
        ("step", True, "'step' must be a whole number of at least 0, got True"),
        ("best", [], "'best' must be the scores of a step, 'dice' among them"),
        ("best", {"step": 4}, "'best' must be the scores of a step, 'dice' among them"),
        ("best", {"step": 4, "dice": "0.5"}, "'best' must be the scores of a step, 'dice' among them"),
        ("last", 3, "'last' must be the scores of a step, got 3"),
        ("config", 3, "'config' must be text, got 3"),
        ("data_set", 3, "must hold an object"),
        ("student", [torch.zeros(1)], "'student' must be a dict"),
        ("scaler", None, "'scaler' must be a dict, got None"),
    ],
)
def test_parts_of_another_type(part: str, value: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, whole(tmp_path) | {part: value})
    with pytest.raises(ValueError, match=f"^checkpoint {path}.*{message}"):
        checkpoint.load(path, ())


def test_classes_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ACDC and M&Ms have them: neither does a run go on with them, nor are its networks judged by them."""
    root, run = write_tiny(tmp_path / "data"), tmp_path / "run"
    names = ("background", "right", "wall", "left")
    write_description(root, Description("none", names))
    arguments = command(tiny_config(root, run, iterations=1))
    assert main(arguments) == 0
    write_description(root, Description("none", ("background", *names[:0:-1])))
    capsys.readouterr()
    path = run / "checkpoints" / "last.pt"
    for again in (arguments, ["evaluate", str(run), "--checkpoint", "last", "--device", "cpu"]):
        assert main(again) == 1
        said = capsys.readouterr().err
        assert f"{root} has the classes background, left, wall, right; checkpoint {path} was trained on" in said
    write_description(root, Description("none"))
    assert main(arguments) == 0


def test_a_description_that_is_no_file_is_not_a_missing_one(tmp_path: Path) -> None:
    path = description_path(tmp_path)
    assert read_description(tmp_path) == Description()
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(FileNotFoundError, match=str(path)):
        read_description(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=str(path)):
        read_description(tmp_path)
