// soft_loss_forward: two launches; of an empty batch the second alone, which writes the sums of nothing.
#include "soft_loss_forward.cuh"

namespace entmask::cuda {

size_t soft_loss_forward_workspace(const SoftLossParams& p) {
  return p.batch * pixels_of(p.size) == 0 ? 0 : soft_forward_bytes(p);
}

cudaError_t soft_loss_forward(const SoftLossForwardParams& p, void* workspace, cudaStream_t stream) {
  return launch_soft_forward(p, static_cast<double*>(workspace), stream);
}

}  // namespace entmask::cuda
