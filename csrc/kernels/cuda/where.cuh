// Where a pixel's patch is True the one side, elsewhere the other; and the mask of these pixels: in one launch.
//
// The first threads make the output, 16 bytes each: they look the patch up, then read the side that it takes, or write
// the number and read nothing. The threads after them make the mask, as many pixels each. No thread waits for another.
#pragma once

#include "launch.h"
#include "rows.cuh"

namespace entmask::cuda {

template <typename E>
struct WhereArguments {
  RowTensor<const E> side[2];  // outside, inside; without data: the number
  RowTensor<E> out;
  void* mask;           // [N, D, H, W] contiguous, mask_bytes an element
  const bool* patches;  // [N, Gd, Gh, Gw] or [1, Gd, Gh, Gw]
  RowIndex rows;
  PatchLookup row_patch;  // by the elements of a row
  PixelIndex pixels;      // of the mask
  PatchLookup pixel_patch;
  E number, one;
  bool narrow_mask;  // a byte an element
};

// Pixels of the mask in one thread, `step` of them or one.
template <typename M, int STEP>
__device__ __forceinline__ void store_mask(void* mask, int64_t index, int32_t step, M value) {
  M values[STEP];
#pragma unroll
  for (int k = 0; k < STEP; ++k) values[k] = value;
  if (step == STEP) {
    store(static_cast<M*>(mask) + index * STEP, values);
  } else {
    static_cast<M*>(mask)[index] = value;
  }
}

template <typename E, int STEP>
__global__ void __launch_bounds__(row_threads) where_kernel(WhereArguments<E> a) {
  wait_for_predecessor();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  if (i < a.rows.total) {
    const RowIndex::Position at = a.rows.at(i);
    const auto offset = [&](const Strides& s) { return offset_of(s, at.n, at.d, at.h, at.w) + at.c * s.c; };
    const RowTensor<const E>& from = a.side[a.patches[a.row_patch(at.n, at.d, at.h, at.w)]];
    E value[STEP];
#pragma unroll
    for (int k = 0; k < STEP; ++k) value[k] = a.number;
    if (from.data != nullptr) load(value, from.data + offset(from.stride));
    store(a.out.data + offset(a.out.stride), value);
  } else if (i - a.rows.total < a.pixels.total) {
    constexpr int step = 16 / static_cast<int>(sizeof(E));
    const int64_t index = i - a.rows.total;
    const PixelIndex::Position at = a.pixels.at(index);
    const E value = a.patches[a.pixel_patch(at.n, at.d, at.h, at.w)] ? a.one : E{0};
    if (a.narrow_mask) {
      store_mask<uint8_t, step>(a.mask, index, a.pixels.step, static_cast<uint8_t>(value));
    } else {
      store_mask<E, step>(a.mask, index, a.pixels.step, value);
    }
  }
}

template <typename E>
cudaError_t launch_where(const WhereParams& p, cudaStream_t stream) {
  constexpr int step = 16 / static_cast<int>(sizeof(E));
  RowTensor<const E> outside{static_cast<const E*>(p.outside), p.outside_stride};
  RowTensor<const E> inside{static_cast<const E*>(p.inside), p.inside_stride};
  RowTensor<E> out{static_cast<E*>(p.out), p.out_stride};
  const Grid& g = p.grid;
  const Rows rows(p.batch, p.channels, g, outside, inside, out);
  Grid row_grid = g;
  row_grid.size[2] = rows.width;
  row_grid.patch[2] = rows.patch_width;
  const bool mask_steps = p.mask != nullptr && g.size[2] % step == 0 && (g.count[2] == 1 || g.patch[2] % step == 0) &&
                          reinterpret_cast<uintptr_t>(p.mask) % static_cast<uintptr_t>(step * p.mask_bytes) == 0;
  WhereArguments<E> a{{outside, inside},
                      out,
                      p.mask,
                      p.patches,
                      RowIndex(p.batch, rows, g, rows.vector ? step : 1),
                      PatchLookup(row_grid, p.patches_stride),
                      PixelIndex(p.batch, g.size, mask_steps ? step : 1),
                      PatchLookup(g, p.patches_stride),
                      static_cast<E>(p.number),
                      static_cast<E>(p.one),
                      p.mask_bytes == 1};
  if (p.mask == nullptr) a.pixels.total = 0;
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.rows.total + a.pixels.total, row_threads)));
  return launch(rows.vector ? where_kernel<E, step> : where_kernel<E, 1>, blocks, dim3(row_threads), 0, stream, a);
}

}  // namespace entmask::cuda
