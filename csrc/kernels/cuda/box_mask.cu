// box_mask: one launch.
#include "box_mask.cuh"

namespace entmask::cuda {

cudaError_t box_mask(const BoxMaskParams& p, cudaStream_t stream) {
  if (p.batch * pixels_of(p.size) == 0) return cudaSuccess;
  const bool vector = p.size[2] % 16 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  const BoxMaskArguments a{p.boxes, reinterpret_cast<uint8_t*>(p.out), PixelIndex(p.batch, p.size, vector ? 16 : 1),
                           p.axes};
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.pixels.total, box_threads)));
  return launch(vector ? box_mask_kernel<16> : box_mask_kernel<1>, blocks, dim3(box_threads), 0, stream, a);
}

}  // namespace entmask::cuda
