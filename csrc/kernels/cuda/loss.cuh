// What the forward and the backward of the consistency loss share: a pixel's label, weight, region and probabilities.
#pragma once

#include "launch.h"
#include "math.cuh"

namespace entmask::cuda {

struct LossArguments {
  const void* logits;        // [N, K, D, H, W]
  const void* labels;        // [N, D, H, W]
  const bool* patches;       // [N or 1, Gd, Gh, Gw] or nullptr
  const void* class_weight;  // [K], float32 (float64), or nullptr
  Strides logits_stride, labels_stride;
  LabelDtype label_dtype;
  bool label_rows;   // a thread's labels lie side by side, aligned
  bool label_pairs;  // int64, and so do those of lanes 2 m and 2 m + 1, in whole warps
  int64_t classes;
  PixelIndex index;
  PatchLookup lookup;
};

template <typename S>
LossArguments loss_arguments(const LossParams& p) {
  const bool rows = rows_together(p.labels, p.labels_stride, p.batch, p.grid.size, S::pixels,
                                  p.label_dtype == LabelDtype::uint8 ? 1 : 8);
  const PixelIndex index(p.batch, p.grid.size, S::pixels);
  const bool pairs =
      rows && p.label_dtype == LabelDtype::int64 && p.grid.size[2] % (2 * S::pixels) == 0 && index.total % 32 == 0;
  return {p.logits,      p.labels, p.patches, p.class_weight, p.logits_stride, p.labels_stride,
          p.label_dtype, rows,     pairs,     p.classes,      index,           PatchLookup(p.grid, p.patches_stride)};
}

// The labels of a thread's pixels as they lie in memory: one of the two.
template <int N>
struct RawLabels {
  uint8_t narrow[N];
  int64_t wide[N];
};

// Nothing that is loaded here is looked at, so that the loads after it need not wait.
template <int N>
__device__ __forceinline__ void load_labels(RawLabels<N>& raw, const LossArguments& a, const PixelIndex::Position& at) {
  const int64_t offset = offset_of(a.labels_stride, at.n, at.d, at.h, at.w);
  if (a.label_dtype == LabelDtype::uint8) {
    load_row(raw.narrow, static_cast<const uint8_t*>(a.labels) + offset, a.labels_stride.w, a.label_rows);
    return;
  }
  const int64_t* labels = static_cast<const int64_t*>(a.labels) + offset;
  if constexpr (N >= 4) {
    if (a.label_pairs) {
      load_pair(raw.wide, labels, (at.w & N) != 0);
      return;
    }
  }
  load_row(raw.wide, labels, a.labels_stride.w, a.label_rows);
}

// -1 for a label outside [0, K).
template <int N>
__device__ __forceinline__ void narrow_labels(int32_t (&label)[N], const RawLabels<N>& raw, const LossArguments& a,
                                              const PixelIndex::Position& at) {
  if (a.label_dtype == LabelDtype::uint8) {
#pragma unroll
    for (int i = 0; i < N; ++i) label[i] = raw.narrow[i] < a.classes ? raw.narrow[i] : -1;
    return;
  }
  const auto narrow = [&](int64_t value) { return value >= 0 && value < a.classes ? static_cast<int32_t>(value) : -1; };
#pragma unroll
  for (int i = 0; i < N; ++i) label[i] = narrow(raw.wide[i]);
  if constexpr (N >= 4) {
    if (a.label_pairs) swap_pair(label, (at.w & N) != 0);
  }
}

// 1 in a masked patch; as a byte, so that it is not looked at before it is needed.
__device__ __forceinline__ uint8_t load_masked(const LossArguments& a, const PixelIndex::Position& at) {
  if (a.patches == nullptr) return 0;
  return reinterpret_cast<const uint8_t*>(a.patches)[a.lookup(at.n, at.d, at.h, at.w)];
}

template <typename F>
__device__ __forceinline__ F weight_of(const LossArguments& a, int32_t label) {
  return a.class_weight == nullptr ? 1 : static_cast<const F*>(a.class_weight)[label];
}

// 4 sums of the cross entropy, then I, Q and T of each class, of all pixels or of each of two regions.
__host__ __device__ constexpr int64_t loss_sums(int64_t classes, int regions) { return 4 + regions * 3 * classes; }

}  // namespace entmask::cuda
