// Patches moved among the images of a group, 16 bytes per thread; and the gradient, which adds up the patches that took
// one.
#pragma once

#include "launch.h"
#include "rows.cuh"

namespace entmask::cuda {

// Where a thread's elements lie in their patch, and where the same place of another patch is.
struct PatchPlaces {
  Divider patches, count[3], patch[3];

  PatchPlaces(const Grid& g, const Rows& rows)
      : patches(patches_of(g)),
        count{Divider(g.count[0]), Divider(g.count[1]), Divider(g.count[2])},
        patch{Divider(g.patch[0]), Divider(g.patch[1]), Divider(rows.patch_width)} {}

  // The number of the patch that the place is in, after `before` images of the same group, and the place inside it.
  __device__ __forceinline__ int64_t enter(int64_t before, const RowIndex::Position& at, int32_t (&inside)[3]) const {
    const int32_t place[3] = {at.d, at.h, at.w};
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      before = before * count[axis].divisor + patch[axis].split(place[axis], &inside[axis]);
    }
    return before;
  }
  // The place `inside` patch number `number`, and its image (returned) from the group's first on.
  __device__ __forceinline__ int64_t leave(int64_t number, const int32_t (&inside)[3], int32_t (&place)[3]) const {
    int32_t index;
    const int64_t image = patches.split(number, &index);
    int64_t left = index;
#pragma unroll
    for (int axis = 2; axis >= 0; --axis) {
      left = count[axis].split(left, &place[axis]);
      place[axis] = place[axis] * patch[axis].divisor + inside[axis];
    }
    return image;
  }
};

template <typename E>
struct GatherArguments {
  RowTensor<const E> x;
  RowTensor<E> out;
  const int64_t* source;  // [group * P]
  RowIndex rows;
  PatchPlaces places;
  Divider group;
  int64_t entries;
  bool inverse;
};

// A thread takes the same place in patch i of its group and in patch source[i]; x is read at the second and out
// written at the first, or with `inverse` the other way round.
template <typename E, int STEP>
__global__ void __launch_bounds__(row_threads) gather_kernel(GatherArguments<E> a) {
  wait_for_predecessor();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  if (i >= a.rows.total) return;
  const RowIndex::Position at = a.rows.at(i);
  int32_t image_of_group, inside[3], there[3];
  const int64_t group = a.group.split(at.n, &image_of_group);
  const int64_t other = a.source[a.places.enter(image_of_group, at, inside)];
  const bool valid = other >= 0 && other < a.entries;
  const int64_t n = group * a.group.divisor + a.places.leave(valid ? other : 0, inside, there);
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
                             PatchPlaces(g, rows),
                             Divider(p.group),
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
  PatchPlaces places;
};

template <typename T, int STEP>
__global__ void __launch_bounds__(row_threads) gather_backward_kernel(GatherBackwardArguments<T> a) {
  wait_for_predecessor();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  if (i >= a.rows.total) return;
  const RowIndex::Position at = a.rows.at(i);
  int32_t inside[3], there[3];
  const int64_t patch = a.places.enter(at.n, at, inside);
  double sum[STEP] = {};  // many may have taken it
  const int64_t last = a.first[patch + 1];
  for (int64_t j = a.first[patch]; j < last; ++j) {
    const int64_t n = a.places.leave(a.takers[j], inside, there);
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
  const GatherBackwardArguments<T> a{
      grad, out, p.takers, p.first, RowIndex(p.batch, rows, g, rows.vector ? step : 1), PatchPlaces(g, rows)};
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.rows.total, row_threads)));
  return launch(rows.vector ? gather_backward_kernel<T, step> : gather_backward_kernel<T, 1>, blocks, dim3(row_threads),
                0, stream, a);
}

}  // namespace entmask::cuda
