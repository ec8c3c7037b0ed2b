// entropy_map and entropy_backward: one launch each.
#include "entropy_map.cuh"

namespace entmask::cuda {

cudaError_t entropy_map(const EntropyMapParams& p, cudaStream_t stream) {
  if (p.batch * pixels_of(p.size) == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto zero) { return launch_entropy_map<decltype(zero)>(p, stream); });
}

cudaError_t entropy_backward(const EntropyBackwardParams& p, cudaStream_t stream) {
  if (p.batch * pixels_of(p.grid.size) == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto zero) { return launch_entropy_backward<decltype(zero)>(p, stream); });
}

}  // namespace entmask::cuda
