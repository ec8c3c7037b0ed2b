// apply_mask: one launch.
#include "apply.cuh"

namespace entmask::cuda {

cudaError_t apply_mask(const ApplyParams& p, cudaStream_t stream) {
  if (p.batch * pixels_of(p.grid.size) == 0 || (p.channels == 0 && p.mask == nullptr)) return cudaSuccess;
  const Rows rows(p.image, p.out, p.image_stride, p.out_stride, p.batch, p.channels, p.grid, bytes_of(p.dtype));
  return with_element(p.dtype, [&](auto zero) {
    using E = decltype(zero);
    return rows.vector ? choose_mask_step<E, 16 / sizeof(E)>(p, rows, stream) : choose_mask_step<E, 1>(p, rows, stream);
  });
}

}  // namespace entmask::cuda
