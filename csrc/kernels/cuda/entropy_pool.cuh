// Uncertainty pooled over patches, and the pseudo-label, in one pass over the logits: the kernels, one for the entropy
// and one for least confidence and margin, and their launcher.
//
// A group of 1 to 128 neighbouring lanes takes one patch, a lane one vector of pixels at a time (16 bytes a class), so
// that small patches share a warp and neighbouring lanes read neighbouring bytes. A lane adds a vector's entropies
// pairwise, its vectors in double; then the group adds its lanes in a fixed order. A few large patches would leave most
// multiprocessors idle: their rows are split over several groups, which leave partial sums in the workspace. They are
// added by a second small launch: a counter that tells the last block would have to be zeroed by a launch of its own.
#pragma once

#include "labels.cuh"
#include "launch.h"

namespace entmask::cuda {

constexpr int pool_threads = 128;

// How patches are split: by the sizes alone, so that the workspace and the launch agree, and a score has the same bits
// on every card. A patch of more than part_pixels is a block's work. Fewer of them than 8 on each of 160
// multiprocessors may leave a good part of a card idle at the end; then they are split, into about 16.
struct PoolSplit {
  int64_t parts;  // groups a patch
  int64_t rows;   // image rows a part

  explicit PoolSplit(const EntropyPoolParams& p) {
    constexpr int64_t few = 8 * 160, part_pixels = 2048, total_parts = 16 * 160;
    const Grid& g = p.grid;
    const auto whole = [&](int axis) { return g.patch[axis] < g.size[axis] ? g.patch[axis] : g.size[axis]; };
    const int64_t patches = p.batch * patches_of(g), patch_rows = whole(0) * whole(1);
    parts = 1;
    if (patches > 0 && patches < few) {
      parts = ceil_div(patch_rows * whole(2), part_pixels);
      if (parts > total_parts / patches) parts = total_parts / patches;
    }
    rows = ceil_div(patch_rows, parts);
    parts = ceil_div(patch_rows, rows);
  }
};

// What adding up the parts needs.
struct PoolFinish {
  const double* partials;  // [patches, parts]
  void* scores;            // [patches]
  int64_t parts;
  Divider count[3];
  int32_t size[3], patch[3];
};

template <typename F>
struct PoolArguments {
  const void* logits;  // [N, K, D, H, W]
  double* partials;    // [patches, parts], or nullptr where a patch is not split
  PoolFinish finish;
  LabelOutput labels;
  Strides stride;
  int64_t classes, units;
  Divider parts;
  Divider columns[2];  // vectors a row; [1]: of the last patch along the width
  Divider height[2];   // rows; [1]: of the last patch along the height
  int64_t part_rows;
  Number threshold;  // a row is an image
  F scale;           // from nats, 1 - p1 or 1 - (p1 - p2) to [0, 1]
  bool margin;
  bool count;
  int log_group;
};

inline PoolFinish pool_finish_of(const EntropyPoolParams& p, const double* partials, int64_t parts) {
  PoolFinish f{partials, p.scores, parts, {}, {}, {}};
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t size = p.grid.size[axis], patch = p.grid.patch[axis];
    f.count[axis] = Divider(p.grid.count[axis]);
    f.size[axis] = static_cast<int32_t>(size);
    f.patch[axis] = static_cast<int32_t>(patch < size ? patch : size);
  }
  return f;
}

// Where a patch begins, and its extent: one cut by the image's edge is smaller.
struct PatchBox {
  int64_t n;
  int32_t begin[3], extent[3];
  bool last[3];
};
__device__ __forceinline__ PatchBox patch_box(const PoolFinish& f, int64_t patch) {
  PatchBox box;
  int32_t index[3];
  box.n = patch;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    box.n = f.count[axis].split(box.n, &index[axis]);
    box.begin[axis] = index[axis] * f.patch[axis];
    const int32_t left = f.size[axis] - box.begin[axis];
    box.last[axis] = left <= f.patch[axis];
    box.extent[axis] = box.last[axis] ? left : f.patch[axis];
  }
  return box;
}
__device__ __forceinline__ double pixels_in(const PatchBox& box) {
  return static_cast<double>(box.extent[0]) * box.extent[1] * box.extent[2];
}

// Blocks a multiprocessor that the registers must leave room for.
template <typename S>
constexpr int pool_blocks = S::classes == 0 || S::classes > 4 ? 3
                            : S::pixels > 4                   ? 4
                                                              : 6;

template <typename S, bool ENTROPY>
__device__ __forceinline__ void pool(const PoolArguments<typename S::F>& a) {
  using T = typename S::T;
  using F = typename S::F;
  __shared__ double warp_sum[pool_threads / 32];
  const int group = 1 << a.log_group, lane = threadIdx.x & (group - 1);
  const int32_t units_a_block = pool_threads >> a.log_group;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * units_a_block + (threadIdx.x >> a.log_group);
  double sum = 0;
  if (unit < a.units) {
    int32_t part;
    const PatchBox box = patch_box(a.finish, a.parts.split(unit, &part));
    const Divider& columns = a.columns[box.last[2]];
    const Divider& height = a.height[box.last[1]];
    F threshold = static_cast<F>(a.count ? read_number(a.threshold, box.n) : 0);
    if (threshold != threshold) threshold = INFINITY;  // no pixel reaches it, and one of NaN still counts

    int64_t rows = static_cast<int64_t>(box.extent[0]) * box.extent[1] - part * a.part_rows;
    if (rows > a.part_rows) rows = a.part_rows;
    int32_t first_h;
    const int32_t first_d = static_cast<int32_t>(height.split(part * a.part_rows, &first_h));
    const int32_t vectors = static_cast<int32_t>(rows > 0 ? rows : 0) * columns.divisor;
    for (int32_t v = lane; v < vectors; v += group) {
      const int32_t row = columns.divide(v), w = box.begin[2] + (v - row * columns.divisor) * S::pixels;
      const int32_t down = height.divide(first_h + row);
      const int32_t d = box.begin[0] + first_d + down, h = box.begin[1] + first_h + row - down * height.divisor;

      F x[S::chunk][S::pixels];
      Softmax<F> softmax[S::pixels];
      read_softmax<S>(softmax, x, static_cast<const T*>(a.logits) + offset_of(a.stride, box.n, d, h, w), a.stride.c,
                      a.classes);
      F value[S::pixels];
#pragma unroll
      for (int i = 0; i < S::pixels; ++i) {
        const F uncertainty = clamp_unit((ENTROPY ? softmax[i].entropy() : softmax[i].doubt(a.margin)) * a.scale);
        value[i] = a.count ? static_cast<F>(!(uncertainty < threshold)) : uncertainty;
      }
      sum += static_cast<double>(pairwise_sum(value));

      if (a.labels.dtype != LabelDtype::none) {
        const int64_t pixel = ((box.n * a.finish.size[0] + d) * a.finish.size[1] + h) * a.finish.size[2] + w;
        int32_t label[S::pixels];
        gated_labels(label, a.labels, softmax);
        store_labels(a.labels, pixel, label, (v & 1) != 0);
      }
    }
  }
  sum = sum_lanes(sum, group < 32 ? group : 32);
  if (group > 32) {
    if ((threadIdx.x & 31) == 0) warp_sum[threadIdx.x / 32] = sum;
    __syncthreads();
    if (lane == 0) {
      for (int w = 1; w < group / 32; ++w) sum += warp_sum[threadIdx.x / 32 + w];
    }
  }
  if (lane == 0 && unit < a.units) {
    if (a.partials != nullptr) {
      a.partials[unit] = sum;
    } else {  // a patch is one part; its box again, so that no register holds it over the loop
      static_cast<F*>(a.finish.scores)[unit] = static_cast<F>(sum / pixels_in(patch_box(a.finish, unit)));
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(pool_threads, pool_blocks<S>) entropy_pool_kernel(PoolArguments<typename S::F> a) {
  wait_for_predecessor();
  pool<S, true>(a);
}
template <typename S>
__global__ void __launch_bounds__(pool_threads, pool_blocks<S>) top_two_pool_kernel(PoolArguments<typename S::F> a) {
  wait_for_predecessor();
  pool<S, false>(a);
}

// A warp adds up a patch's parts.
template <typename F>
__global__ void __launch_bounds__(pool_threads) entropy_pool_finish_kernel(PoolFinish f, int64_t patches) {
  wait_for_predecessor();
  const int64_t patch = static_cast<int64_t>(blockIdx.x) * (pool_threads / 32) + threadIdx.x / 32;
  if (patch >= patches) return;  // a whole warp
  double sum = 0;
  for (int64_t part = threadIdx.x & 31; part < f.parts; part += 32) sum += f.partials[patch * f.parts + part];
  sum = sum_lanes(sum);
  if ((threadIdx.x & 31) == 0) static_cast<F*>(f.scores)[patch] = static_cast<F>(sum / pixels_in(patch_box(f, patch)));
}

// Whether all lanes of a warp take as many vectors: no patch is cut by the edge, no part of one is smaller than others,
// no group's last vectors are for some of its lanes, no warp has groups beyond the last part.
inline bool whole_warps(const PoolFinish& f, const PoolSplit& split, int64_t columns, int64_t units, int64_t group) {
  for (int axis = 0; axis < 3; ++axis) {
    if (f.size[axis] % f.patch[axis] != 0) return false;
  }
  return int64_t{f.patch[0]} * f.patch[1] == split.parts * split.rows && split.rows * columns % group == 0 &&
         units * group % 32 == 0;
}

template <typename T>
cudaError_t launch_entropy_pool(const EntropyPoolParams& p, const PoolSplit& split, double* partials,
                                cudaStream_t stream) {
  const Grid& g = p.grid;
  Layout layout = layout_of<T>(p.logits, p.logits_stride, p.batch, p.classes, g);
  if (layout == Layout::planes && reinterpret_cast<uintptr_t>(p.labels) % 16 != 0) layout = Layout::any;
  return with_shape<T>(layout, p.classes, [&](auto shape) {
    using S = decltype(shape);
    const bool entropy = p.uncertainty == Uncertainty::entropy;
    PoolArguments<typename S::F> a{p.logits, split.parts > 1 ? partials : nullptr,
                                   pool_finish_of(p, partials, split.parts),
                                   LabelOutput(p.labels, p.label_dtype, p.gated, p.min_confidence)};
    a.stride = p.logits_stride;
    a.classes = p.classes;
    a.units = p.batch * patches_of(g) * split.parts;
    a.parts = Divider(split.parts);
    for (int edge = 0; edge < 2; ++edge) {
      const auto extent = [&](int axis) {
        return edge ? g.size[axis] - (g.count[axis] - 1) * g.patch[axis] : int64_t{a.finish.patch[axis]};
      };
      a.columns[edge] = Divider(extent(2) / S::pixels);
      a.height[edge] = Divider(extent(1));
    }
    a.part_rows = split.rows;
    a.threshold = p.threshold;
    a.scale = static_cast<typename S::F>(entropy ? 1 / std::log(static_cast<double>(p.classes))
                                                 : top_two_scale(p.uncertainty, p.classes));
    a.margin = p.uncertainty == Uncertainty::margin;
    a.count = p.count;
    // About 16 pixels a lane: enough lanes to have the loads in flight, few enough to spare divisions and shuffles.
    const int64_t lanes = split.rows * a.columns[0].divisor * S::pixels / 16;
    while (a.log_group < 7 && (int64_t{1} << a.log_group) < lanes) ++a.log_group;
    a.labels.pairs = p.label_dtype == LabelDtype::int64 && a.log_group > 0 && a.columns[0].divisor % 2 == 0 &&
                     whole_warps(a.finish, split, a.columns[0].divisor, a.units, int64_t{1} << a.log_group);
    const dim3 blocks(static_cast<unsigned>(ceil_div(a.units << a.log_group, pool_threads)));
    return launch(entropy ? entropy_pool_kernel<S> : top_two_pool_kernel<S>, blocks, dim3(pool_threads), 0, stream, a);
  });
}

extern template cudaError_t launch_entropy_pool<__half>(const EntropyPoolParams&, const PoolSplit&, double*,
                                                        cudaStream_t);
extern template cudaError_t launch_entropy_pool<__nv_bfloat16>(const EntropyPoolParams&, const PoolSplit&, double*,
                                                               cudaStream_t);

}  // namespace entmask::cuda
