// shuffle_patches: one launch.
#include "shuffle.cuh"

namespace entmask::cuda {

cudaError_t shuffle_patches(const ShuffleParams& p, cudaStream_t stream) {
  if (p.batch * p.channels * pixels_of(p.grid.size) == 0) return cudaSuccess;
  const Rows rows(p.x, p.out, p.x_stride, p.out_stride, p.batch, p.channels, p.grid, bytes_of(p.dtype));
  return with_element(p.dtype, [&](auto zero) {
    using E = decltype(zero);
    return rows.vector ? launch_shuffle<E, 16 / sizeof(E)>(p, rows, stream) : launch_shuffle<E, 1>(p, rows, stream);
  });
}

}  // namespace entmask::cuda
