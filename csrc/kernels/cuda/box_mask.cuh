// A box of each image as a mask of pixels, 16 of a row per thread where rows allow.
#pragma once

#include "launch.h"
#include "load.cuh"

namespace entmask::cuda {

constexpr int box_threads = 256;

struct BoxMaskArguments {
  const int64_t* boxes;  // [N, 2 * axes]
  uint8_t* out;          // [N, D, H, W]
  PixelIndex pixels;
  int64_t axes;
};

template <int STEP>
__global__ void __launch_bounds__(box_threads) box_mask_kernel(BoxMaskArguments a) {
  wait_for_predecessor();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * box_threads + threadIdx.x;
  if (i >= a.pixels.total) return;
  const PixelIndex::Position at = a.pixels.at(i);
  const int64_t* box = a.boxes + at.n * 2 * a.axes;
  bool inside = true;
  if (a.axes == 3) {
    inside = box[0] <= at.d && at.d < box[1];
    box += 2;
  }
  inside = inside && box[0] <= at.h && at.h < box[1];
  const int64_t first = box[2], last = box[3];
  uint8_t value[STEP];
#pragma unroll
  for (int k = 0; k < STEP; ++k) value[k] = inside && first <= at.w + k && at.w + k < last;
  store(a.out + i * STEP, value);
}

}  // namespace entmask::cuda
