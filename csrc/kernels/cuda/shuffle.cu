// gather (shuffle_patches, gather_patches) and its gradient: one launch each.
#include "shuffle.cuh"

namespace entmask::cuda {

cudaError_t gather(const GatherParams& p, cudaStream_t stream) {
  if (p.batch * p.channels * pixels_of(p.grid.size) == 0) return cudaSuccess;
  return with_element(p.bytes, [&](auto zero) { return launch_gather<decltype(zero)>(p, stream); });
}

cudaError_t gather_backward(const GatherBackwardParams& p, cudaStream_t stream) {
  if (p.batch * p.channels * pixels_of(p.grid.size) == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto zero) { return launch_gather_backward<decltype(zero)>(p, stream); });
}

}  // namespace entmask::cuda
