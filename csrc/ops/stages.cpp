#include "stages.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

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

// Runs kernel(begin, end) over the items; `elements`: what all items together touch.
template <class F>
void in_parallel(int64_t items, int64_t elements, const F& kernel) {
  if (items == 0) return;
  const int64_t grain = std::max<int64_t>(1, items * kTaskElements / std::max<int64_t>(elements, 1));
  at::parallel_for(0, items, grain, kernel);
}

at::Tensor scratch(size_t bytes, const c10::Device& device) {
  return at::empty({int64_t(bytes)}, at::TensorOptions().dtype(at::kByte).device(device));
}

int64_t pixels(const int64_t (&size)[3]) { return size[0] * size[1] * size[2]; }

#ifdef ENTMASK_CUDA
// Launches on the current stream of the tensors' device.
template <class F>
void on_stream(const c10::Device& device, const F& launch) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(launch(c10::cuda::getCurrentCUDAStream(device.index()).stream()));
}
#define ENTMASK_ON_CUDA(statement)                                     \
  if (device.is_cuda()) {                                              \
    on_stream(device, [&](cudaStream_t stream) { return statement; }); \
    return;                                                            \
  }
#else
#define ENTMASK_ON_CUDA(statement)
#endif

}  // namespace

void run(const EntropyPoolParams& p, const c10::Device& device) {
#ifdef ENTMASK_CUDA
  if (device.is_cuda()) {
    const c10::cuda::CUDAGuard guard(device);
    const at::Tensor workspace = scratch(cuda::entropy_pool_workspace(p), device);
    on_stream(device, [&](cudaStream_t stream) { return cuda::entropy_pool(p, workspace.mutable_data_ptr(), stream); });
    return;
  }
#endif
  const cpu::Kernels& k = cpu::kernels();
  const size_t bytes = k.entropy_pool_workspace(p);
  const at::Tensor workspace = bytes ? scratch(bytes, device) : at::Tensor();
  void* const memory = bytes ? workspace.mutable_data_ptr() : nullptr;
  in_parallel(k.entropy_pool_items(p), p.batch * p.classes * pixels(p.grid.size),
              [&](int64_t begin, int64_t end) { k.entropy_pool(p, memory, begin, end); });
  if (bytes) k.entropy_pool_finish(p, memory);
}

void run(const EntropyMapParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(cuda::entropy_map(p, stream))
  const cpu::Kernels& k = cpu::kernels();
  in_parallel(k.entropy_map_items(p), p.batch * p.classes * pixels(p.size),
              [&](int64_t begin, int64_t end) { k.entropy_map(p, begin, end); });
}

void run(const EntropyBackwardParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(cuda::entropy_backward(p, stream))
  const cpu::Kernels& k = cpu::kernels();
  in_parallel(k.entropy_backward_items(p), p.batch * p.classes * pixels(p.grid.size),
              [&](int64_t begin, int64_t end) { k.entropy_backward(p, begin, end); });
}

void run(const SelectParams& p, const c10::Device& device) {
#ifdef ENTMASK_CUDA
  if (device.is_cuda()) {
    const c10::cuda::CUDAGuard guard(device);
    const at::Tensor workspace = scratch(cuda::select_workspace(p), device);
    on_stream(device, [&](cudaStream_t stream) { return cuda::select(p, workspace.mutable_data_ptr(), stream); });
    return;
  }
#endif
  const cpu::Kernels& k = cpu::kernels();
  in_parallel(p.rows, 4 * p.rows * p.length, [&](int64_t begin, int64_t end) { k.select(p, begin, end); });
}

void run(const EntropyPoolParams& pool, const SelectParams& select, const c10::Device& device) {
#ifdef ENTMASK_CUDA
  if (device.is_cuda()) {
    const c10::cuda::CUDAGuard guard(device);
    const at::Tensor workspace = scratch(cuda::entropy_pool_select_workspace(pool, select), device);
    on_stream(device, [&](cudaStream_t stream) {
      return cuda::entropy_pool_select(pool, select, workspace.mutable_data_ptr(), stream);
    });
    return;
  }
#endif
  run(pool, device);
  run(select, device);
}

void run(const ApplyParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(cuda::apply_mask(p, stream))
  const cpu::Kernels& k = cpu::kernels();
  in_parallel(k.apply_mask_items(p), p.batch * (p.channels + 1) * pixels(p.grid.size),
              [&](int64_t begin, int64_t end) { k.apply_mask(p, begin, end); });
}

void run(const LossForwardParams& p, const c10::Device& device) {
#ifdef ENTMASK_CUDA
  if (device.is_cuda()) {
    const c10::cuda::CUDAGuard guard(device);
    const at::Tensor workspace = scratch(cuda::loss_forward_workspace(p.loss), device);
    on_stream(device, [&](cudaStream_t stream) { return cuda::loss_forward(p, workspace.mutable_data_ptr(), stream); });
    return;
  }
#endif
  const cpu::Kernels& k = cpu::kernels();
  const at::Tensor workspace = scratch(k.loss_forward_workspace(p.loss), device);
  void* const memory = workspace.mutable_data_ptr();
  in_parallel(k.loss_items(p.loss), p.loss.batch * p.loss.classes * pixels(p.loss.grid.size),
              [&](int64_t begin, int64_t end) { k.loss_forward(p, memory, begin, end); });
  k.loss_forward_finish(p, memory);
}

void run(const LossBackwardParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(cuda::loss_backward(p, stream))
  const cpu::Kernels& k = cpu::kernels();
  in_parallel(k.loss_items(p.loss), p.loss.batch * p.loss.classes * pixels(p.loss.grid.size),
              [&](int64_t begin, int64_t end) { k.loss_backward(p, begin, end); });
}

void run(const ShuffleParams& p, const c10::Device& device) {
  ENTMASK_ON_CUDA(cuda::shuffle_patches(p, stream))
  const cpu::Kernels& k = cpu::kernels();
  in_parallel(k.shuffle_patches_items(p), p.batch * p.channels * pixels(p.grid.size),
              [&](int64_t begin, int64_t end) { k.shuffle_patches(p, begin, end); });
}

}  // namespace entmask::ops
