"""Threads with small stacks, as OMP_STACKSIZE and threading.stack_size give them: staging lies in scratch memory."""

import os
import subprocess
import sys
from pathlib import Path

# Every op, forward and backward, naming each before it starts; a stack that overflows ends the process.
CALLS = """
import threading
import torch
from cases import LAYOUTS, Shape, make_image, make_labels, make_logits, make_patches
import entmask_ext

def backward(*outputs):
    torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

def run(shape, dtype, layout):
    image, logits = make_image(shape, dtype).requires_grad_(), make_logits(shape, dtype, absent=-60)
    image = LAYOUTS[layout](image.detach()).requires_grad_()
    logits = LAYOUTS[layout](logits).requires_grad_()
    labels, patches = make_labels(shape), make_patches(shape)
    order = torch.randperm(2 * shape.patches)
    labelled = {"label_dtype": torch.int64}
    calls = {
        "entropy_map": lambda: backward(entmask_ext.entropy_map(logits)),
        "uncertainty_map": lambda: backward(entmask_ext.uncertainty_map(logits, "margin")),
        "pseudo_labels": lambda: entmask_ext.pseudo_labels(logits, min_confidence=0.6, **labelled),
        "patch_scores": lambda: backward(entmask_ext.patch_scores(logits, shape.patch)),
        "count": lambda: entmask_ext.patch_scores(logits, shape.patch, score="count"),
        "patch_mask": lambda: backward(*entmask_ext.patch_mask(image, logits, shape.patch, **labelled)[::3]),
        "pixels": lambda: entmask_ext.patch_mask(image, logits, 1, 0.3, hint=0.1, **labelled),
        "random_patch_mask": lambda: backward(entmask_ext.random_patch_mask(image, shape.patch).image),
        "consistency_loss": lambda: backward(entmask_ext.consistency_loss(logits, labels, patches, shape.patch).total),
        "regions": lambda: entmask_ext.consistency_loss(logits, labels, patches, shape.patch, dice_region="each"),
        "soft_consistency_loss": lambda: backward(entmask_ext.soft_consistency_loss(logits, logits.detach(), None)),
        "shuffle_patches": lambda: backward(entmask_ext.shuffle_patches(image, shape.patch, order)),
        "select_patches": lambda: entmask_ext.select_patches(torch.rand(1, 100, 1000).to(logits.dtype), min_score=0.5),
        "patch_where": lambda: backward(entmask_ext.patch_where(patches, image, image * 2, shape.patch)),
    }
    for name, call in calls.items():
        print(name, shape, dtype, layout, flush=True)
        call()

def everything():
    many, few, wide = ((2, 3, 2048, (9, 24), (3, 8)), (2, 2, 5, (96, 160), (8, 10)), (2, 4, 4, (4, 1040), (2, 26)))
    for shape in (Shape(*many), Shape(*few), Shape(*wide)):
        for dtype in (torch.float32, torch.float64, torch.float16):
            for layout in ("contiguous", "channels_last", "sliced"):
                run(shape, dtype, layout)
    print("done", flush=True)

torch.manual_seed(0)
threading.stack_size(256 * 1024)
thread = threading.Thread(target=everything)
thread.start()
thread.join()
"""


def test_stacks_of_256_kibibytes() -> None:
    """Of the thread that calls and of those that help it."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_STACKSIZE": "256k", "OMP_WAIT_POLICY": "passive"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", CALLS]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"exit status {done.returncode} in {last}\n{done.stderr[-2000:]}"
    assert last == ["done"], done.stderr[-2000:]
