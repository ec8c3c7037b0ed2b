// What the loss's forward and backward share: the labels and regions of a piece of a row, and the walk over the rows.
#pragma once

#include "grid.h"
#include "planar.h"
#include "softmax.h"

namespace entmask::cpu::ENTMASK_ISA {

// The sums of the loss: masked w l, masked w, visible w l, visible w, then I_0.., Q_0.., T_0.. of all pixels, or of
// each region.
constexpr int kHead = 4;
ENTMASK_INLINE int64_t loss_sums(const LossParams& p) { return kHead + (p.dice_each ? 6 : 3) * p.classes; }

ENTMASK_INLINE int64_t loss_items(const LossParams& p) { return strip_items(p.grid, p.batch); }

// Labels [0, classes) of n pixels as lane-sized integers; any other label, and the vector of room beyond n, becomes -1.
template <class L, class I>
ENTMASK_INLINE void load_labels(const L* p, int64_t stride, int64_t n, int64_t room, int64_t classes, I* out) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) out[i] = int64_t(p[i]) < 0 || int64_t(p[i]) >= classes ? I(-1) : I(p[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t v = int64_t(p[i * stride]);
      out[i] = v < 0 || v >= classes ? I(-1) : I(v);
    }
  }
  for (int64_t i = n; i < n + room; ++i) out[i] = I(-1);
}

// How many pixels count in the class sums I_0.., Q_0.., T_0..
ENTMASK_INLINE double region_pixels(const double* sums, int64_t classes) {
  double pixels = 0;
  for (int64_t k = 0; k < classes; ++k) pixels += sums[2 * classes + k];
  return pixels;
}

// A piece of at most kChunk pixels of one row of an image, as the row functions see it.
template <class S>
struct LossPiece {
  using T = Compute<S>;
  using I = IVecElement<T>;
  S* x;                 // its first pixel of class 0
  int64_t n, z, y, x0;  // image, depth, row and first column
  int64_t count;
  const I* labels;  // [count + a vector], -1: ignored
  const I* masked;  // [count + a vector], -1 (all bits) inside a masked patch, else 0
};

template <class S, class F>
ENTMASK_INLINE void for_each_piece(const LossParams& p, int64_t begin, int64_t end, F&& f) {
  using T = Compute<S>;
  using I = IVecElement<T>;
  const Grid& g = p.grid;
  const Strides &st = p.logits_stride, &ls = p.labels_stride;
  const int64_t splits = strip_splits(g), width = g.size[2];
  I labels[kChunk + kWidth<T>], masked[kChunk + kWidth<T>] = {};
  for (int64_t index = begin; index < end; ++index) {
    const Item item(g, splits, index);
    for (int64_t x0 = 0; x0 < width; x0 += kChunk) {
      const int64_t count = width - x0 < kChunk ? width - x0 : kChunk;
      if (p.patches) {
        const bool* const row = p.patches + item.n * p.patches_stride + (item.gz * g.count[1] + item.gy) * g.count[2];
        spread_patches(g, x0, count, masked, [&](int64_t gx) { return row[gx] ? I(-1) : I(0); });
      }
      for (int64_t r = item.first; r < item.last; ++r) {
        const int64_t z = item.z(r), y = item.y(r);
        const int64_t at = item.n * ls.n + z * ls.d + y * ls.h + x0 * ls.w;
        if (p.label_dtype == LabelDtype::uint8)
          load_labels(static_cast<const uint8_t*>(p.labels) + at, ls.w, count, kWidth<T>, p.classes, labels);
        else
          load_labels(static_cast<const int64_t*>(p.labels) + at, ls.w, count, kWidth<T>, p.classes, labels);
        S* const x = static_cast<S*>(const_cast<void*>(p.logits)) + item.n * st.n + z * st.d + y * st.h + x0 * st.w;
        f(LossPiece<S>{x, item.n, z, y, x0, count, labels, masked}, index);
      }
    }
  }
}

// The labels of a vector of pixels. Where a row's last vector was moved back, the pixels of the one before are taken
// out.
template <class T>
ENTMASK_INLINE IVec<T> labels_at(const IVecElement<T>* labels, int64_t at, int64_t i) {
  IVec<T> v;
  __builtin_memcpy(&v, labels + at, sizeof v);
  return at == i ? v : v | ~lanes_from<T>(i - at);
}

template <class T>
ENTMASK_INLINE IVec<T> load_mask(const IVecElement<T>* masked, int64_t at) {
  IVec<T> v;
  __builtin_memcpy(&v, masked + at, sizeof v);
  return v;
}

// Calls f with the number of classes as with_classes does, and with whether each region has its own Dice.
template <class S, class F>
ENTMASK_INLINE auto with_regions(const LossParams& p, F&& f) {
  return with_classes<S>(p.classes, [&](auto k) { return p.dice_each ? f(k, Constant<2>{}) : f(k, Constant<1>{}); });
}

// The pixel's own weight: the weight of its label's class, 1 without class weights.
template <class T>
ENTMASK_INLINE T weight_of(const LossParams& p, int64_t k) {
  return p.class_weight ? static_cast<const T*>(p.class_weight)[k] : T(1);
}

}  // namespace entmask::cpu::ENTMASK_ISA
