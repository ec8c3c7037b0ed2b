// loss_backward: one launch.
#include "loss_backward.cuh"

namespace entmask::cuda {

cudaError_t loss_backward(const LossBackwardParams& p, cudaStream_t stream) {
  if (p.loss.batch * pixels_of(p.loss.grid.size) == 0) return cudaSuccess;
  return with_dtype(p.loss.dtype, [&](auto zero) { return launch_loss_backward<decltype(zero)>(p, stream); });
}

}  // namespace entmask::cuda
