// Pseudo-labels: which are kept, and how a thread writes its own.
#pragma once

#include <cmath>

#include "math.cuh"

namespace entmask::cuda {

struct LabelOutput {
  void* labels;  // [N, D, H, W] contiguous, or nullptr
  LabelDtype dtype;
  bool pairs;  // int64, and lanes 2 m and 2 m + 1 have neighbours, in whole warps
  bool gated;
  int32_t ignored;        // what a label becomes that is not kept
  Number min_confidence;  // one for all

  LabelOutput(void* labels_, LabelDtype dtype_, bool gated_, const Number& min_confidence_)
      : labels(labels_),
        dtype(dtype_),
        pairs(false),
        gated(gated_),
        ignored(dtype_ == LabelDtype::uint8 ? kIgnoredUint8 : kIgnoredInt64),
        min_confidence(min_confidence_) {}
};

// The labels of a thread's pixels.
template <typename F, int N>
__device__ __forceinline__ void gated_labels(int32_t (&label)[N], const LabelOutput& out,
                                             const Softmax<F> (&softmax)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) label[i] = softmax[i].label;
  if (out.gated) {
    const F limit = static_cast<F>(read_number(out.min_confidence, 0));
#pragma unroll
    for (int i = 0; i < N; ++i) label[i] = softmax[i].scale() >= limit ? label[i] : out.ignored;  // NaN is ignored
  }
}

// From pixel `offset` on; `odd`: this lane is the second of a pair.
template <int N>
__device__ __forceinline__ void store_labels(const LabelOutput& out, int64_t offset, int32_t (&label)[N], bool odd) {
  if (out.dtype == LabelDtype::uint8) {
    uint8_t row[N];
#pragma unroll
    for (int i = 0; i < N; ++i) row[i] = static_cast<uint8_t>(label[i]);
    store(static_cast<uint8_t*>(out.labels) + offset, row);
    return;
  }
  int64_t* const labels = static_cast<int64_t*>(out.labels) + offset;
  if constexpr (N >= 4) {
    if (out.pairs) {
      store_pair(labels, label, odd);
      return;
    }
  }
  int64_t row[N];
#pragma unroll
  for (int i = 0; i < N; ++i) row[i] = label[i];
  store(labels, row);
}

}  // namespace entmask::cuda
