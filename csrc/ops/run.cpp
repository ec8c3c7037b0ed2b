#include "run.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include "../kernels/cpu/cpu.h"

#ifdef ENTMASK_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../kernels/cuda/launch.h"
#endif

namespace entmask::ops {
namespace {

constexpr int64_t kTaskElements = 1 << 15;  // fewer are not worth a thread

at::DataPtr cpu_memory(size_t bytes) { return bytes ? c10::GetCPUAllocator()->allocate(bytes) : at::DataPtr(); }

// `elements`: what all items of the stage together touch.
template <class P>
void run_on_cpu(const cpu::Stage<P>& stage, const P& p, int64_t elements) {
  const int64_t items = stage.items(p);
  const at::DataPtr workspace = cpu_memory(stage.workspace ? stage.workspace(p) : 0);
  if (items > 0) {
    // Scratch for all threads at once: a malloc in each would cost more than a small stage.
    const bool alone = at::in_parallel_region() || elements <= kTaskElements;
    const size_t each = stage.scratch ? (stage.scratch(p) + 63) / 64 * 64 : 0;
    const at::DataPtr scratch = cpu_memory(each * (alone ? 1 : at::get_num_threads()));
    const int64_t grain = std::max<int64_t>(1, items * kTaskElements / std::max<int64_t>(elements, 1));
    at::parallel_for(0, items, alone ? items : grain, [&](int64_t begin, int64_t end) {
      char* const own = static_cast<char*>(scratch.get()) + (alone ? 0 : each * size_t(at::get_thread_num()));
      stage.run(p, {workspace.get(), own}, begin, end);
    });
  }
  if (stage.finish) stage.finish(p, workspace.get());
}

int64_t pixels(const int64_t (&size)[3]) { return size[0] * size[1] * size[2]; }

#ifdef ENTMASK_CUDA
// Launches on the current stream of the tensors' device.
template <class F>
void on_stream(const c10::Device& device, const F& launch) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(launch(c10::cuda::getCurrentCUDAStream(device.index()).stream()));
}
// The same with a workspace of bytes(p).
template <class P, class Bytes, class Launch>
void on_stream(const c10::Device& device, const P& p, const Bytes& bytes, const Launch& launch) {
  const c10::cuda::CUDAGuard guard(device);
  const at::Tensor workspace = at::empty({int64_t(bytes(p))}, at::TensorOptions().dtype(at::kByte).device(device));
  C10_CUDA_CHECK(launch(p, workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream(device.index()).stream()));
}
#define ENTMASK_ON_CUDA(...) \
  if (device.is_cuda()) return on_stream(device, __VA_ARGS__);
#else
#define ENTMASK_ON_CUDA(...)
#endif

}  // namespace

void run(const EntropyPoolParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(p, cuda::entropy_pool_workspace, cuda::entropy_pool)
  run_on_cpu(*cpu::kernels().entropy_pool, p, p.batch * p.classes * pixels(p.grid.size));
}

void run(const EntropyMapParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA([&](cudaStream_t stream) { return cuda::entropy_map(p, stream); })
  run_on_cpu(*cpu::kernels().entropy_map, p, p.batch * p.classes * pixels(p.size));
}

void run(const EntropyBackwardParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA([&](cudaStream_t stream) { return cuda::entropy_backward(p, stream); })
  run_on_cpu(*cpu::kernels().entropy_backward, p, p.batch * p.classes * pixels(p.grid.size));
}

void run(const PseudoLabelsParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(p, cuda::pseudo_labels_workspace, cuda::pseudo_labels)
  run_on_cpu(*cpu::kernels().pseudo_labels, p, p.batch * p.classes * pixels(p.size));
}

void run(const SelectParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(p, cuda::select_workspace, cuda::select)
  run_on_cpu(*cpu::kernels().select, p, 4 * p.rows * p.length);
}

void run(const WhereParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA([&](cudaStream_t stream) { return cuda::where(p, stream); })
  run_on_cpu(*cpu::kernels().where, p, p.batch * (p.channels + 1) * pixels(p.grid.size));
}

void run(const BoxMaskParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA([&](cudaStream_t stream) { return cuda::box_mask(p, stream); })
  run_on_cpu(*cpu::kernels().box_mask, p, p.batch * pixels(p.size) / 4);
}

void run(const LossForwardParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(
      p, [](const LossForwardParams& f) { return cuda::loss_forward_workspace(f.loss); }, cuda::loss_forward)
  run_on_cpu(*cpu::kernels().loss_forward, p, p.loss.batch * p.loss.classes * pixels(p.loss.grid.size));
}

void run(const LossBackwardParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA([&](cudaStream_t stream) { return cuda::loss_backward(p, stream); })
  run_on_cpu(*cpu::kernels().loss_backward, p, p.loss.batch * p.loss.classes * pixels(p.loss.grid.size));
}

void run(const SoftLossForwardParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(
      p, [](const SoftLossForwardParams& f) { return cuda::soft_loss_forward_workspace(f.loss); },
      cuda::soft_loss_forward)
  run_on_cpu(*cpu::kernels().soft_loss_forward, p, 2 * p.loss.batch * p.loss.classes * pixels(p.loss.size));
}

void run(const SoftLossBackwardParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA([&](cudaStream_t stream) { return cuda::soft_loss_backward(p, stream); })
  run_on_cpu(*cpu::kernels().soft_loss_backward, p, 2 * p.loss.batch * p.loss.classes * pixels(p.loss.size));
}

void run(const GatherParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA([&](cudaStream_t stream) { return cuda::gather(p, stream); })
  run_on_cpu(*cpu::kernels().gather, p, p.batch * p.channels * pixels(p.grid.size));
}

void run(const GatherBackwardParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA([&](cudaStream_t stream) { return cuda::gather_backward(p, stream); })
  run_on_cpu(*cpu::kernels().gather_backward, p, 2 * p.batch * p.channels * pixels(p.grid.size));
}

void run(const ComponentsParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(p, cuda::components_workspace, cuda::components)
  run_on_cpu(*cpu::kernels().components, p, 4 * p.batch * pixels(p.size));
}

}  // namespace entmask::ops
