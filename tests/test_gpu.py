"""What only a GPU can show: streams, graphs, several devices, no waiting of the host, and agreement with the CPU."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cases import DTYPES, SHAPES, Shape, assert_same_bits, assert_scores_close, make_image, make_labels, make_logits
from torch import Tensor

import entmask_ext
from entmask_ext import reference

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parent.parent
SHAPE = Shape(4, 2, 5, (130, 157), (16, 16))


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Any call that makes the host wait is an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


def step(image: Tensor, logits: Tensor, labels: Tensor, ratio: Tensor, order: Tensor) -> list[Tensor]:
    """Every op, forward and backward."""
    image, logits = image.detach().requires_grad_(), logits.detach().requires_grad_()
    masked = entmask_ext.patch_mask(image, logits, 16, ratio, hint=0.1, label_dtype=torch.uint8)
    per_image = entmask_ext.select_patches(masked.scores.detach(), ratio * torch.arange(4, device=ratio.device) / 3)
    mixed = entmask_ext.patch_where(masked.patches, image, image.detach().flip(0), 16)
    by_score = entmask_ext.patch_mask_from_scores(image, masked.scores.detach(), 16, min_score=ratio, scope="batch")
    losses = entmask_ext.consistency_loss(logits, labels, masked.patches, 16)
    entropy = entmask_ext.entropy_map(logits)
    counted = entmask_ext.patch_scores(logits, 16, score="count", threshold=ratio)
    shuffled = entmask_ext.shuffle_patches(image[..., :128, :144], 16, order)
    total = losses.total + masked.scores.sum() + masked.image.sum() + entropy.sum() + shuffled.square().sum()
    total = total + mixed.square().sum()
    gradients = torch.autograd.grad(total, (image, logits))
    results = [*masked, *by_score[:4], *losses, entropy, counted, shuffled, per_image, mixed, *gradients]
    return [x.detach() for x in results if x is not None]


def inputs(device: str = "cuda", seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return (
        make_image(SHAPE, device=device),
        make_logits(SHAPE, device=device, absent=-60),
        make_labels(SHAPE, torch.uint8, device),
        torch.tensor(0.4, device=device),
        torch.randperm(2 * 72).to(device),
    )


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(one, other)


def test_cuda_kernels_are_built() -> None:
    assert entmask_ext._C.build_info()["cuda"]


def test_the_host_never_waits(no_sync: None) -> None:
    arguments = _without_sync_check(inputs)
    torch.cuda.synchronize()
    step(*arguments)
    entmask_ext.random_patch_mask(arguments[0], 16, 0.5, shared=True)


def _without_sync_check(make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    torch.cuda.set_sync_debug_mode("default")
    made = make()
    torch.cuda.set_sync_debug_mode("error")
    return made


def test_run_to_run() -> None:
    arguments = inputs()
    want = step(*arguments)
    for _ in range(20):
        assert_same(step(*arguments), want)


def test_streams_side_by_side() -> None:
    many = [inputs(seed=seed) for seed in range(4)]
    want = [step(*arguments) for arguments in many]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in many]
    for _ in range(10):
        got = []
        for stream, arguments in zip(streams, many, strict=True):
            with torch.cuda.stream(stream):
                got.append(step(*arguments))
        torch.cuda.synchronize()
        for actual, expected in zip(got, want, strict=True):
            assert_same(actual, expected)


def test_work_goes_to_the_current_stream() -> None:
    """The input is written late on a side stream; an op on another stream would read what was there before."""
    arguments = inputs()
    want = step(*arguments)
    image, logits, labels, ratio, order = arguments
    late = torch.zeros_like(logits)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(logits)
        got = step(image, late, labels, ratio, order)
    torch.cuda.synchronize()
    assert_same(got, want)


# Lets the next launch begin, and half a millisecond later writes.
WRITE_LATE = r"""
extern "C" __global__ void write_late(int* out, const int* in, int n) {
  asm volatile("griddepcontrol.launch_dependents;");
  const long long begin = clock64();
  while (clock64() - begin < 1000000) {
  }
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) out[i] = in[i];
}
"""


def readers() -> dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Ops that launch their own kernels only, and the input that is written late."""
    shape = Shape(4, 2, 5, (128, 144), (16, 16))
    image, logits = make_image(shape, device="cuda"), make_logits(shape, device="cuda")
    labels, target = make_labels(shape, torch.uint8, "cuda"), logits.flip(0)
    scores, row = torch.rand(4, 8, 9, device="cuda"), torch.rand(2, 200, 200, device="cuda")
    patches, source = scores > 0.5, torch.randperm(4 * 72, device="cuda").view(4, 8, 9)
    boxes = torch.tensor([[3, 40, 5, 70]] * 4, device="cuda")
    return {
        "patch_scores": (logits, lambda x: entmask_ext.patch_scores(x, 16)),
        "entropy_map": (logits, entmask_ext.entropy_map),
        "uncertainty_map": (logits, lambda x: entmask_ext.uncertainty_map(x, "margin")),
        "pseudo_labels": (logits, lambda x: entmask_ext.pseudo_labels(x, min_confidence=0.6).labels),
        "select_patches": (scores, lambda x: entmask_ext.select_patches(x, 0.5)),
        "select_patches, a long row": (row, lambda x: entmask_ext.select_patches(x, 0.5)),
        "patch_where": (image, lambda x: entmask_ext.patch_where(patches, x, 0.0, 16)),
        "box_mask": (boxes, lambda x: entmask_ext.box_mask(x, (64, 96))),
        "gather_patches": (image, lambda x: entmask_ext.gather_patches(x, source, 16)),
        "largest_components": (labels, lambda x: entmask_ext.largest_components(x, 5)),
        "consistency_loss": (logits, lambda x: entmask_ext.consistency_loss(x, labels).total),
        "soft_consistency_loss": (logits, lambda x: entmask_ext.soft_consistency_loss(x, target)),
    }


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="no launches that overlap"
)
@pytest.mark.parametrize("captured", [False, True], ids=["eager", "graph"])
def test_kernels_wait_for_what_writes_their_inputs(captured: bool) -> None:
    """A kernel that was launched early finds what the one before it writes, eager and in a graph."""
    write_late = torch.cuda._compile_kernel(WRITE_LATE, "write_late")
    for name, (values, op) in readers().items():
        want, late = op(values), torch.zeros_like(values)
        words = values.numel() * values.element_size() // 4

        def both(late: Tensor = late, values: Tensor = values, op: Callable = op, words: int = words) -> Tensor:
            write_late(grid=(4, 1, 1), block=(256, 1, 1), args=[late, values, words])
            return op(late)

        torch.cuda.synchronize()
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                got = both()
            graph.replay()
        else:
            got = both()
        torch.cuda.synchronize()
        assert torch.equal(got, want), name


def test_a_cuda_graph_follows_its_inputs() -> None:
    """Captured once, replayed with other numbers, another ratio among them."""
    static = inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*static)
    for seed, ratio in ((1, 0.4), (2, 0.9), (3, 0.1), (3, 0.1)):
        others = list(inputs(seed=seed))
        others[3] = torch.tensor(ratio, device="cuda")
        for place, value in zip(static, others, strict=True):
            place.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(captured, step(*others))


def test_the_very_first_call_may_be_captured() -> None:
    """A process that calls each op for the first time while a graph is captured: whatever is set up then must be legal
    there. Replayed with other numbers it gives what the calls give."""
    code = """if True:
        import torch
        import entmask_ext as em

        ones = torch.ones((), device="cuda")
        order = torch.randperm(32, device="cuda")
        boxes = torch.tensor([[1, 2, 20, 30]], device="cuda")
        inputs = [
            torch.randn(2, 1, 64, 64, device="cuda"),
            torch.randn(2, 4, 64, 64, device="cuda"),
            torch.randint(4, (2, 64, 64), device="cuda"),
        ]

        def step(image, logits, labels):
            logits = logits.detach().requires_grad_()
            masked = em.patch_mask(image, logits.detach(), 16, 0.5, label_dtype=torch.uint8)
            total = em.consistency_loss(logits, labels, masked.patches, 16).total
            return [
                *masked,
                total.detach(),
                *torch.autograd.grad(total, logits, ones),
                em.entropy_map(logits.detach()),
                em.shuffle_patches(image, 16, order),
                em.gather_patches(image, order.view(2, 4, 4), 16),
                em.patch_where(masked.patches, image, 0.0, 16),
                em.select_patches(image[:, 0, 0], 0.5),
                em.box_mask(boxes, (64, 64)),
                em.largest_components(labels, 4),
            ]

        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step(*inputs)
        inputs[0].normal_(), inputs[1].normal_(), inputs[2].random_(4)
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(captured, step(*inputs), strict=True):
            assert torch.equal(one, other)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_entries_out_of_range_write_zeros() -> None:
    """The values of a permutation are not looked at on the host."""
    x = torch.randn(1, 1, 2, 2, device="cuda")
    got = entmask_ext.shuffle_patches(x, 1, torch.tensor([3, 4, -1, 0], device="cuda")).flatten()
    assert torch.equal(got[[0, 3]], x.flatten()[[3, 0]])
    assert torch.equal(got[1:3], torch.zeros_like(got[1:3]))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_other_device() -> None:
    """Tensors on cuda:1 while cuda:0 is current."""
    want = step(*inputs("cuda:0"))
    arguments = inputs("cuda:1")
    with torch.cuda.device(0):
        got = step(*arguments)
        assert torch.cuda.current_device() == 0
    assert all(x.device == torch.device("cuda:1") for x in got)
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert_same([x.cpu() for x in got], [x.cpu() for x in want])
    with pytest.raises(ValueError, match=r"image.*logits|logits.*image"):
        entmask_ext.patch_mask(inputs("cuda:0")[0], arguments[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_and_cuda_agree(shape: Shape, dtype: torch.dtype) -> None:
    """Scores to rounding, and the same mask for the same scores."""
    image, logits = make_image(shape, dtype), make_logits(shape, dtype)
    here = entmask_ext.patch_mask(image, logits, shape.patch, 0.4, label_dtype=torch.int64)
    there = entmask_ext.patch_mask(image.cuda(), logits.cuda(), shape.patch, 0.4, label_dtype=torch.int64)
    assert_scores_close(there.scores.cpu(), here.scores)
    assert here.labels is not None
    assert there.labels is not None
    assert_same_bits(there.labels.cpu(), here.labels)
    same = entmask_ext.patch_mask_from_scores(image.cuda(), here.scores.cuda(), shape.patch, 0.4)
    assert_same_bits(same.patches.cpu(), here.patches)
    assert_same_bits(same.image.cpu(), here.image)


def test_a_mix_of_devices_is_refused() -> None:
    image, logits, labels, _, order = inputs()
    for call in (
        lambda: entmask_ext.patch_mask(image.cpu(), logits),
        lambda: entmask_ext.patch_mask(image, logits.cpu()),
        lambda: entmask_ext.consistency_loss(logits, labels.cpu()),
        lambda: entmask_ext.consistency_loss(logits, labels, class_weight=torch.ones(5)),
        lambda: entmask_ext.shuffle_patches(image[..., :128, :144], 16, order.cpu()),
    ):
        with pytest.raises(ValueError, match=r"cuda:0.*cpu|cpu.*cuda:0"):
            call()


def test_more_than_two_to_the_31_elements() -> None:
    """Offsets beyond int32, in logits and image, by expanding: the memory is small, the arithmetic is not."""
    if torch.cuda.get_device_properties(0).total_memory < 32 * 2**30:
        pytest.skip("needs 32 GiB of GPU memory")
    images, height, width = 9, 16384, 16384
    logits = torch.randn(images, 1, height // 64, 1, device="cuda", dtype=torch.float16)
    logits = logits.repeat_interleave(64, 2).expand(images, 1, height, width).contiguous()  # 4.5 GiB
    assert logits.numel() > 2**31
    pair = torch.stack([logits[:, 0], torch.zeros((), device="cuda", dtype=torch.float16).expand_as(logits[:, 0])], 1)
    scores = entmask_ext.patch_scores(pair, (64, width))
    rows = pair[:, :, ::64, :1].double()
    assert_scores_close(scores.flatten(1), reference.entropy_map(rows).flatten(1))
    masked = entmask_ext.patch_mask_from_scores(logits, scores, (64, width), 0.5)
    assert torch.equal(masked.mask[:, 0, ::64, -1].bool(), masked.patches[..., 0])
    assert torch.equal(masked.image[:, 0, 63::64, -1], logits[:, 0, 63::64, -1] * ~masked.patches[..., 0])
