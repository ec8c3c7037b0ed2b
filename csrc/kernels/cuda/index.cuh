// Where a thread's pixels lie: division by numbers known before the launch, and the way from a linear index to offsets.
//
// Linear indices are 64 bits wide, so that a tensor may have more than 2^31 elements; one axis has fewer than 2^31. A
// 64-bit division costs some hundred instructions, a Divider three where the index fits 31 bits (nearly always) and a
// dozen beyond.
#pragma once

#include "../params.h"
#include "platform.cuh"

namespace entmask::cuda {

// (An axis of no elements counts as one here: nothing is divided by it.)
//
// n / d and n % d for 0 <= n < 2^62 and a fixed 1 <= d < 2^31: with l = ceil(log2 d) and m = floor(2^(B + l) / d) + 1,
// floor(n m / 2^(B + l)) = floor(n / d) for all n < 2^B, as m d - 2^(B + l) <= 2^l.
struct Divider {
  uint64_t wide = 0;    // m for B = 62
  uint32_t narrow = 0;  // m for B = 31
  int32_t divisor = 1;
  int32_t narrow_shift = 0;
  int32_t wide_shift = 0;

  Divider() = default;
  explicit Divider(int64_t length) {
    const uint64_t d = length > 0 ? static_cast<uint64_t>(length) : 1;
    divisor = static_cast<int32_t>(d);
    int log = 0;
    while ((uint64_t{1} << log) < d) ++log;
    narrow = static_cast<uint32_t>((uint64_t{1} << (31 + log)) / d + 1);
    narrow_shift = 31 + log;
    const int wide_log = log < 2 ? 2 : log;
    if (d > 1) wide = static_cast<uint64_t>((static_cast<unsigned __int128>(1) << (62 + wide_log)) / d + 1);
    wide_shift = wide_log - 2;
  }

  __device__ __forceinline__ int32_t divide(int32_t n) const {
    return static_cast<int32_t>((static_cast<uint64_t>(static_cast<uint32_t>(n)) * narrow) >> narrow_shift);
  }
  __device__ __forceinline__ int64_t divide(int64_t n) const {
    if ((n >> 31) == 0) return divide(static_cast<int32_t>(n));
    return divisor == 1 ? n : static_cast<int64_t>(multiply_high(static_cast<uint64_t>(n), wide) >> wide_shift);
  }
  // Splits n into quotient (returned) and remainder.
  __device__ __forceinline__ int64_t split(int64_t n, int32_t* remainder) const {
    const int64_t quotient = divide(n);
    *remainder = static_cast<int32_t>(n - quotient * divisor);
    return quotient;
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t patches_of(const Grid& grid) { return grid.count[0] * grid.count[1] * grid.count[2]; }
inline int64_t pixels_of(const int64_t (&size)[3]) { return size[0] * size[1] * size[2]; }

// A grid of one patch that is the whole image.
inline Grid whole_image(const int64_t (&size)[3]) {
  return {{size[0], size[1], size[2]}, {size[0], size[1], size[2]}, {1, 1, 1}};
}

// Pixels of the batch, `step` along the width at a time: index -> image n, position (d, h, w).
struct PixelIndex {
  Divider columns, height, depth;
  int32_t step;
  int64_t total;

  PixelIndex(int64_t batch, const int64_t (&size)[3], int step_)
      : columns(size[2] / step_),
        height(size[1]),
        depth(size[0]),
        step(step_),
        total(batch * size[0] * size[1] * (size[2] / step_)) {}

  struct Position {
    int64_t n;
    int32_t d, h, w;
  };
  __device__ __forceinline__ Position at(int64_t index) const {
    Position at;
    at.n = depth.split(height.split(columns.split(index, &at.w), &at.h), &at.d);
    at.w *= step;
    return at;
  }
};

// The patch that a pixel is in: `stride` patches lie between an image's first and the next's.
struct PatchLookup {
  Divider patch[3];
  int64_t count[3], stride;

  explicit PatchLookup(const Grid& grid) : PatchLookup(grid, patches_of(grid)) {}
  PatchLookup(const Grid& grid, int64_t stride_) : stride(stride_) {
    for (int axis = 0; axis < 3; ++axis) {
      patch[axis] = Divider(grid.patch[axis] < grid.size[axis] ? grid.patch[axis] : grid.size[axis]);
      count[axis] = grid.count[axis];
    }
  }
  __device__ __forceinline__ int64_t operator()(int64_t n, int32_t d, int32_t h, int32_t w) const {
    return n * stride + (patch[0].divide(d) * count[1] + patch[1].divide(h)) * count[2] + patch[2].divide(w);
  }
};

__host__ __device__ __forceinline__ int64_t offset_of(const Strides& s, int64_t n, int32_t d, int32_t h, int32_t w) {
  return n * s.n + d * s.d + h * s.h + w * s.w;
}

}  // namespace entmask::cuda
