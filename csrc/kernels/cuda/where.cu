// where: one launch.
#include "where.cuh"

namespace entmask::cuda {

cudaError_t where(const WhereParams& p, cudaStream_t stream) {
  if (p.batch * pixels_of(p.grid.size) == 0 || (p.channels == 0 && p.mask == nullptr)) return cudaSuccess;
  return with_element(p.bytes, [&](auto zero) { return launch_where<decltype(zero)>(p, stream); });
}

}  // namespace entmask::cuda
