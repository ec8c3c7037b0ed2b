// shuffle_patches: one launch.
#include "shuffle.cuh"

namespace entmask::cuda {

cudaError_t shuffle_patches(const ShuffleParams& p, cudaStream_t stream) {
  if (p.batch * p.channels * pixels_of(p.grid.size) == 0) return cudaSuccess;
  return with_element(bytes_of(p.dtype), [&](auto zero) { return launch_shuffle<decltype(zero)>(p, stream); });
}

}  // namespace entmask::cuda
