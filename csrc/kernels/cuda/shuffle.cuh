// Patches moved among the images of a group, 16 bytes a thread.
#pragma once

#include "launch.h"
#include "rows.cuh"

namespace entmask::cuda {

inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

inline uint64_t nan_bits(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return 0x7ff8000000000000;
    case Dtype::float32:
      return 0x7fc00000;
    case Dtype::float16:
      return 0x7e00;
    default:
      return 0x7fc0;
  }
}

template <typename E>
struct ShuffleArguments {
  RowTensor<const E> x;
  RowTensor<E> out;
  const int64_t* permutation;  // [group * P]
  RowIndex rows;
  Divider group, patches, count[3], patch[3];
  int64_t entries;
  bool inverse;
  E nan;
};

// A thread takes the same place in patch i of its group and in patch permutation[i]; x is read at the second and out
// written at the first, or with `inverse` the other way round.
template <typename E, int STEP>
__global__ void __launch_bounds__(row_threads) shuffle_kernel(ShuffleArguments<E> a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  if (i >= a.rows.total) return;
  const RowIndex::Position at = a.rows.at(i);
  const int32_t place[3] = {at.d, at.h, at.w};
  int32_t image_of_group, inside[3];
  const int64_t group = a.group.split(at.n, &image_of_group);
  int64_t patch = image_of_group;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    patch = patch * a.count[axis].divisor + a.patch[axis].split(place[axis], &inside[axis]);
  }
  int64_t other = a.permutation[patch];
  const bool valid = other >= 0 && other < a.entries;
  int32_t index, there[3];
  const int64_t n = group * a.group.divisor + a.patches.split(valid ? other : 0, &index);
  int64_t left = index;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    left = a.count[axis].split(left, &there[axis]);
    there[axis] = there[axis] * a.patch[axis].divisor + inside[axis];
  }
  const auto here = [&](const Strides& s) { return offset_of(s, at.n, at.d, at.h, at.w) + at.c * s.c; };
  const auto elsewhere = [&](const Strides& s) { return offset_of(s, n, there[0], there[1], there[2]) + at.c * s.c; };
  E value[STEP];
  if (a.inverse) {
    if (!valid) return;
    load(value, a.x.data + here(a.x.stride));
    store(a.out.data + elsewhere(a.out.stride), value);
  } else {
#pragma unroll
    for (int k = 0; k < STEP; ++k) value[k] = a.nan;
    if (valid) load(value, a.x.data + elsewhere(a.x.stride));
    store(a.out.data + here(a.out.stride), value);
  }
}

template <typename E>
cudaError_t launch_shuffle(const ShuffleParams& p, cudaStream_t stream) {
  constexpr int step = 16 / static_cast<int>(sizeof(E));
  RowTensor<const E> x{static_cast<const E*>(p.x), p.x_stride};
  RowTensor<E> out{static_cast<E*>(p.out), p.out_stride};
  const Grid& g = p.grid;
  const Rows rows(p.batch, p.channels, g, x, out);
  const ShuffleArguments<E> a{x,
                              out,
                              p.permutation,
                              RowIndex(p.batch, rows, g, rows.vector ? step : 1),
                              Divider(p.group),
                              Divider(patches_of(g)),
                              {Divider(g.count[0]), Divider(g.count[1]), Divider(g.count[2])},
                              {Divider(g.patch[0]), Divider(g.patch[1]), Divider(rows.patch_width)},
                              p.group * patches_of(g),
                              p.inverse,
                              static_cast<E>(nan_bits(p.dtype))};
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.rows.total, row_threads)));
  return launch(rows.vector ? shuffle_kernel<E, step> : shuffle_kernel<E, 1>, blocks, dim3(row_threads), 0, stream, a);
}

}  // namespace entmask::cuda
