// Moving image rows about patch by patch, for apply and shuffle: which rows there are and in what steps they are moved.
//
// Only the size of an element matters, not its dtype. A channels_last row is taken as one channel's row of W * C
// elements whose patches are pw * C wide, so that both layouts move 16 bytes a thread.
#pragma once

#include "load.cuh"

namespace entmask::cuda {

constexpr int row_threads = 256;

template <int BYTES>
using Element = std::conditional_t<BYTES == 2, uint16_t, std::conditional_t<BYTES == 4, uint32_t, uint64_t>>;

inline int bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// The bits of `value` in the dtype.
inline uint64_t bits_of(double value, Dtype dtype) {
  uint64_t bits = 0;
  const float single = static_cast<float>(value);
  if (dtype == Dtype::float64) {
    memcpy(&bits, &value, sizeof(value));
  } else if (dtype == Dtype::float32) {
    memcpy(&bits, &single, sizeof(single));
  } else if (dtype == Dtype::float16) {
    const __half half = __float2half(single);
    memcpy(&bits, &half, sizeof(half));
  } else {
    const __nv_bfloat16 half = __float2bfloat16(single);
    memcpy(&bits, &half, sizeof(half));
  }
  return bits;
}

// Rows of [N, C, D, H, W] as they are read and written.
struct Rows {
  Strides in, out;
  int64_t channels, width, patch_width;
  bool vector;  // 16 bytes at a time, never across patches

  Rows(const void* from, const void* to, const Strides& in_, const Strides& out_, int64_t batch, int64_t channels_,
       const Grid& grid, int bytes)
      : in(in_),
        out(out_),
        channels(channels_),
        width(grid.size[2]),
        patch_width(grid.patch[2] < grid.size[2] ? grid.patch[2] : grid.size[2]) {
    const auto interleaved = [&](const Strides& s) { return s.c == 1 && (s.w == channels || width == 1); };
    if (channels > 1 && interleaved(in) && interleaved(out)) {
      width *= channels;
      patch_width *= channels;
      channels = 1;
      in.w = out.w = 1;
    }
    const int64_t step = 16 / bytes;
    const auto aligned = [&](const void* p, const Strides& s) {
      return reinterpret_cast<uintptr_t>(p) % 16 == 0 && s.w == 1 &&
             steps_are_multiples(s, batch, channels, grid.size, step, Layout::planes);
    };
    vector =
        width % step == 0 && (grid.count[2] == 1 || patch_width % step == 0) && aligned(from, in) && aligned(to, out);
  }
};

// Index -> a step along a row of a channel of an image.
struct RowIndex {
  Divider columns, height, depth, channels;
  int32_t step;
  int64_t total;

  RowIndex(int64_t batch, const Rows& rows, const Grid& grid, int step_)
      : columns(rows.width / step_),
        height(grid.size[1]),
        depth(grid.size[0]),
        channels(rows.channels),
        step(step_),
        total(batch * rows.channels * grid.size[0] * grid.size[1] * (rows.width / step_)) {}

  struct Position {
    int64_t n;
    int32_t c, d, h, w;
  };
  __device__ __forceinline__ Position at(int64_t index) const {
    Position at;
    at.n = channels.split(depth.split(height.split(columns.split(index, &at.w), &at.h), &at.d), &at.c);
    at.w *= step;
    return at;
  }
};

// Calls fn(Element{}) for the size of the dtype.
template <typename Fn>
cudaError_t with_element(Dtype dtype, const Fn& fn) {
  switch (bytes_of(dtype)) {
    case 2:
      return fn(Element<2>{});
    case 4:
      return fn(Element<4>{});
    default:
      return fn(Element<8>{});
  }
}

}  // namespace entmask::cuda
