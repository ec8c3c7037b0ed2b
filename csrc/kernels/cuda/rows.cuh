// Moving image rows about patch by patch, for where and shuffle: which rows there are and in what steps they are moved.
//
// Only the size of an element matters, not its dtype. A channels_last row is taken as one channel's row of W * C
// elements whose patches are pw * C wide, so that both layouts move 16 bytes a thread.
#pragma once

#include "load.cuh"

namespace entmask::cuda {

constexpr int row_threads = 256;

// A tensor [N, C, D, H, W] that takes part. data == nullptr: there is none, which fits any rows.
template <typename E>
struct RowTensor {
  E* data;
  Strides stride;
};

// The rows that all of the tensors have.
struct Rows {
  int64_t channels, width, patch_width;
  bool vector;  // 16 bytes at a time, never across patches

  // Strides become those of the rows.
  template <typename... E>
  Rows(int64_t batch, int64_t channels_, const Grid& grid, RowTensor<E>&... tensors)
      : channels(channels_),
        width(grid.size[2]),
        patch_width(grid.patch[2] < grid.size[2] ? grid.patch[2] : grid.size[2]) {
    constexpr int64_t axis_limit = int64_t{1} << 31;
    const auto interleaved = [&](const auto& t) {
      return t.data == nullptr || (t.stride.c == 1 && (t.stride.w == channels || width == 1));
    };
    if (channels > 1 && channels * width < axis_limit && (interleaved(tensors) && ...)) {
      width *= channels;
      patch_width *= channels;
      channels = 1;
      ((tensors.stride.w = 1), ...);
    }
    const auto fits = [&](const auto& t) {
      constexpr int64_t step = 16 / sizeof(*t.data);
      return t.data == nullptr || (width % step == 0 && (grid.count[2] == 1 || patch_width % step == 0) &&
                                   reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride.w == 1 &&
                                   steps_are_multiples(t.stride, batch, channels, grid.size, step, Layout::planes));
    };
    vector = (fits(tensors) && ...);
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

// Calls fn(E{}) for an element of so many bytes.
template <typename Fn>
cudaError_t with_element(int64_t bytes, const Fn& fn) {
  switch (bytes) {
    case 1:
      return fn(uint8_t{});
    case 2:
      return fn(uint16_t{});
    case 4:
      return fn(uint32_t{});
    case 8:
      return fn(uint64_t{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace entmask::cuda
