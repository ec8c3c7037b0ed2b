// loss_forward: two launches; of an empty batch the second alone, which writes the sums of nothing.
#include "loss_forward.cuh"

namespace entmask::cuda {

size_t loss_forward_workspace(const LossParams& p) {
  size_t bytes = 0;
  if (p.batch * pixels_of(p.grid.size) == 0) return bytes;
  with_dtype(p.dtype, [&](auto zero) {
    bytes = loss_forward_bytes<decltype(zero)>(p);
    return cudaSuccess;
  });
  return bytes;
}

cudaError_t loss_forward(const LossForwardParams& p, void* workspace, cudaStream_t stream) {
  return with_dtype(p.loss.dtype, [&](auto zero) {
    return launch_loss_forward<decltype(zero)>(p, static_cast<double*>(workspace), stream);
  });
}

}  // namespace entmask::cuda
