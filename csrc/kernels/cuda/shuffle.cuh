// Patches moved among the images of a group, 16 bytes per thread; and the gradient, which adds up the patches that took
// one.
#pragma once

#include "launch.h"
#include "rows.cuh"

namespace entmask::cuda {

template <typename E>
struct GatherArguments {
  RowTensor<const E> x;
  RowTensor<E> out;
  const int64_t* source;  // [group * P]
  RowIndex rows;
  Divider group, patches, count[3], patch[3];
  int64_t entries;
  bool inverse;
};

// A thread takes the same place in patch i of its group and in patch source[i]; x is read at the second and out
// written at the first, or with `inverse` the other way round.
template <typename E, int STEP>
__global__ void __launch_bounds__(row_threads) gather_kernel(GatherArguments<E> a) {
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
  int64_t other = a.source[patch];
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
    for (int k = 0; k < STEP; ++k) value[k] = 0;
    if (valid) load(value, a.x.data + elsewhere(a.x.stride));
    store(a.out.data + here(a.out.stride), value);
  }
}

template <typename E>
cudaError_t launch_gather(const GatherParams& p, cudaStream_t stream) {
  constexpr int step = 16 / static_cast<int>(sizeof(E));
  RowTensor<const E> x{static_cast<const E*>(p.x), p.x_stride};
  RowTensor<E> out{static_cast<E*>(p.out), p.out_stride};
  const Grid& g = p.grid;
  const Rows rows(p.batch, p.channels, g, x, out);
  const GatherArguments<E> a{x,
                             out,
                             p.source,
                             RowIndex(p.batch, rows, g, rows.vector ? step : 1),
                             Divider(p.group),
                             Divider(patches_of(g)),
                             {Divider(g.count[0]), Divider(g.count[1]), Divider(g.count[2])},
                             {Divider(g.patch[0]), Divider(g.patch[1]), Divider(rows.patch_width)},
                             p.group * patches_of(g),
                             p.inverse};
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.rows.total, row_threads)));
  return launch(rows.vector ? gather_kernel<E, step> : gather_kernel<E, 1>, blocks, dim3(row_threads), 0, stream, a);
}

// ---------------------------------------------------------------- gradient
//
// A thread takes a few neighbouring elements of a patch and adds up those at the same place in the patches that took
// it, in the order given: deterministic, and one patch that all have taken is still the work of many threads.

template <typename T>
struct GatherBackwardArguments {
  RowTensor<const T> grad;
  RowTensor<T> out;
  const int64_t* takers;  // [N P]
  const int64_t* first;   // [N P + 1]
  RowIndex rows;
  Divider patches, count[3], patch[3];
};

template <typename T, int STEP>
__global__ void __launch_bounds__(row_threads) gather_backward_kernel(GatherBackwardArguments<T> a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  if (i >= a.rows.total) return;
  const RowIndex::Position at = a.rows.at(i);
  const int32_t place[3] = {at.d, at.h, at.w};
  int32_t inside[3];
  int64_t patch = at.n;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    patch = patch * a.count[axis].divisor + a.patch[axis].split(place[axis], &inside[axis]);
  }
  double sum[STEP] = {};  // many may have taken it
  const int64_t last = a.first[patch + 1];
  for (int64_t j = a.first[patch]; j < last; ++j) {
    int32_t index, there[3];
    const int64_t n = a.patches.split(a.takers[j], &index);
    int64_t left = index;
#pragma unroll
    for (int axis = 2; axis >= 0; --axis) {
      left = a.count[axis].split(left, &there[axis]);
      there[axis] = there[axis] * a.patch[axis].divisor + inside[axis];
    }
    T value[STEP];
    load(value, a.grad.data + offset_of(a.grad.stride, n, there[0], there[1], there[2]) + at.c * a.grad.stride.c);
#pragma unroll
    for (int k = 0; k < STEP; ++k) sum[k] += widen(value[k]);
  }
  T value[STEP];
#pragma unroll
  for (int k = 0; k < STEP; ++k) value[k] = narrow<T>(static_cast<Compute<T>>(sum[k]));
  store(a.out.data + offset_of(a.out.stride, at.n, at.d, at.h, at.w) + at.c * a.out.stride.c, value);
}

template <typename T>
cudaError_t launch_gather_backward(const GatherBackwardParams& p, cudaStream_t stream) {
  constexpr int step = 16 / static_cast<int>(sizeof(T));
  RowTensor<const T> grad{static_cast<const T*>(p.grad), p.grad_stride};
  RowTensor<T> out{static_cast<T*>(p.out), p.out_stride};
  const Grid& g = p.grid;
  const Rows rows(p.batch, p.channels, g, grad, out);
  const GatherBackwardArguments<T> a{grad,
                                     out,
                                     p.takers,
                                     p.first,
                                     RowIndex(p.batch, rows, g, rows.vector ? step : 1),
                                     Divider(patches_of(g)),
                                     {Divider(g.count[0]), Divider(g.count[1]), Divider(g.count[2])},
                                     {Divider(g.patch[0]), Divider(g.patch[1]), Divider(rows.patch_width)}};
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.rows.total, row_threads)));
  return launch(rows.vector ? gather_backward_kernel<T, step> : gather_backward_kernel<T, 1>, blocks, dim3(row_threads),
                0, stream, a);
}

}  // namespace entmask::cuda
