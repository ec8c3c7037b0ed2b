// The pseudo-labels of a row: kept or ignored, and written in their dtype.
#pragma once

#include "softmax.h"

namespace entmask::cpu::ENTMASK_ISA {

// Which labels are kept.
template <class T>
struct Gate {
  bool active;  // else all
  T limit;      // the least confidence; none reaches a NaN
  IVecElement<T> ignored;

  Gate(bool gated, const Number& min_confidence, LabelDtype dtype)
      : active(gated),
        limit(T(min_confidence.value)),
        ignored(dtype == LabelDtype::uint8 ? kIgnoredUint8 : kIgnoredInt64) {}

  ENTMASK_INLINE IVec<T> operator()(const Softmax<T>& p) const {
    if (!active) return p.label;
    return confidence_of(p) >= limit ? p.label : IVec<T>{} + ignored;
  }
};

// n labels from the pixel `first` on.
template <class T>
ENTMASK_INLINE void store_labels(const IVecElement<T>* __restrict label, int64_t n, LabelDtype dtype, void* labels,
                                 int64_t first) {
  if (dtype == LabelDtype::uint8) {
    uint8_t* __restrict to = static_cast<uint8_t*>(labels) + first;
    for (int64_t i = 0; i < n; ++i) to[i] = uint8_t(label[i]);
  } else if (dtype == LabelDtype::int64) {
    int64_t* __restrict to = static_cast<int64_t*>(labels) + first;
    for (int64_t i = 0; i < n; ++i) to[i] = label[i];
  }
}

}  // namespace entmask::cpu::ENTMASK_ISA
