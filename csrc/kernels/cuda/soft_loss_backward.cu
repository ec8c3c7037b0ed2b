// soft_loss_backward: one launch.
#include "soft_loss_backward.cuh"

namespace entmask::cuda {

cudaError_t soft_loss_backward(const SoftLossBackwardParams& p, cudaStream_t stream) {
  return p.loss.batch * pixels_of(p.loss.size) == 0 ? cudaSuccess : launch_soft_backward(p, stream);
}

}  // namespace entmask::cuda
