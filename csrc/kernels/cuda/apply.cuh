// The masked image and the mask of pixels, in one launch.
//
// The first threads make the image, 16 bytes each: those of a masked patch write `fill` and read nothing. The threads
// after them make the mask, a step of as many pixels each. Both look the patch up; no thread waits for another.
#pragma once

#include "launch.h"
#include "rows.cuh"

namespace entmask::cuda {

template <typename E>
struct ApplyArguments {
  const E* image;       // [N, C, D, H, W]
  E* out;               // [N, C, D, H, W]
  void* mask;           // [N, 1, D, H, W] contiguous
  const bool* patches;  // [N, Gd, Gh, Gw]
  Strides image_stride, out_stride;
  RowIndex rows;
  PatchLookup row_patch;  // by the elements of a row
  PixelIndex pixels;      // of the mask
  PatchLookup pixel_patch;
  E fill, one;
};

template <typename E, int STEP, typename M, int MASK_STEP>
__global__ void __launch_bounds__(row_threads) apply_mask_kernel(ApplyArguments<E> a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  if (i < a.rows.total) {
    const RowIndex::Position at = a.rows.at(i);
    E value[STEP];
    if (a.patches[a.row_patch(at.n, at.d, at.h, at.w)]) {
#pragma unroll
      for (int k = 0; k < STEP; ++k) value[k] = a.fill;
    } else {
      load(value, a.image + offset_of(a.image_stride, at.n, at.d, at.h, at.w) + at.c * a.image_stride.c);
    }
    store(a.out + offset_of(a.out_stride, at.n, at.d, at.h, at.w) + at.c * a.out_stride.c, value);
  } else if (i - a.rows.total < a.pixels.total) {
    const int64_t index = i - a.rows.total;
    const PixelIndex::Position at = a.pixels.at(index);
    const bool masked = a.patches[a.pixel_patch(at.n, at.d, at.h, at.w)];
    M value[MASK_STEP];
#pragma unroll
    for (int k = 0; k < MASK_STEP; ++k) value[k] = masked ? static_cast<M>(a.one) : M{0};
    store(static_cast<M*>(a.mask) + index * MASK_STEP, value);
  }
}

template <typename E, int STEP, typename M, int MASK_STEP>
cudaError_t launch_apply(const ApplyParams& p, const Rows& rows, cudaStream_t stream) {
  Grid row_grid = p.grid;
  row_grid.size[2] = rows.width;
  row_grid.patch[2] = rows.patch_width;
  ApplyArguments<E> a{static_cast<const E*>(p.image),
                      static_cast<E*>(p.out),
                      p.mask,
                      p.patches,
                      rows.in,
                      rows.out,
                      RowIndex(p.batch, rows, p.grid, STEP),
                      PatchLookup(row_grid),
                      PixelIndex(p.batch, p.grid.size, MASK_STEP),
                      PatchLookup(p.grid),
                      static_cast<E>(bits_of(p.fill, p.dtype)),
                      static_cast<E>(p.mask_is_bool ? 1 : bits_of(1, p.dtype))};
  if (p.mask == nullptr) a.pixels.total = 0;
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.rows.total + a.pixels.total, row_threads)));
  return launch(apply_mask_kernel<E, STEP, M, MASK_STEP>, blocks, dim3(row_threads), 0, stream, a);
}

template <typename E, int STEP>
cudaError_t choose_mask_step(const ApplyParams& p, const Rows& rows, cudaStream_t stream) {
  constexpr int step = 16 / static_cast<int>(sizeof(E));
  const Grid& g = p.grid;
  const bool vector = g.size[2] % step == 0 && (g.count[2] == 1 || g.patch[2] % step == 0) &&
                      reinterpret_cast<uintptr_t>(p.mask) % 16 == 0;
  if (p.mask_is_bool) {
    return vector ? launch_apply<E, STEP, uint8_t, step>(p, rows, stream)
                  : launch_apply<E, STEP, uint8_t, 1>(p, rows, stream);
  }
  return vector ? launch_apply<E, STEP, E, step>(p, rows, stream) : launch_apply<E, STEP, E, 1>(p, rows, stream);
}

}  // namespace entmask::cuda
