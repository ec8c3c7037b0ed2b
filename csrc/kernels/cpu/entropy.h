// Softmax entropy of vectors of pixels, in one pass over the classes, with the argmax on request.
//
//   m = max_k x_k, over the classes other than one maximum: e = exp(x - m), z = sum e, s = sum e (x - m)
//   H = ln(1 + z) - s / (1 + z)
//
// Both terms are >= 0 and z holds no 1 from the maximum itself, so nothing cancels: an entropy of 1e-30 keeps its
// relative accuracy. One log a pixel, and one exp less than there are classes.
#pragma once

#include "simd.h"

namespace entmask::cpu::ENTMASK_ISA {

// The lowest finite number: stands in for a maximum of -inf.
template <class T>
constexpr T kLeast = sizeof(T) == 4 ? T(-3.4028234663852886e38) : T(-1.7976931348623157e308);

// The maximum of some classes, the sums over the others relative to it, and the first index that reaches it.
template <class T>
struct Softmax {
  Vec<T> max, z, s;
  IVec<T> label;
};

// Turns +inf, NaN and "every class -inf" into NaN: m - m is 0 only for a finite maximum. A NaN class is in z already.
template <class T>
ENTMASK_INLINE Vec<T> entropy_of(const Softmax<T>& p, T scale, T ceiling) {
  const Vec<T> u = p.z + T(1);
  const Vec<T> h = log_from_one<T>(u) + ((p.z - (u - T(1))) - p.s) / u + (p.max - p.max);
  return min(splat<T>(ceiling), h * scale);  // min(c, NaN) is NaN
}

// Reads G <= 8 classes into registers and folds each into a (larger, smaller) pair: the G - 1 smaller ones are exactly
// the classes other than one maximum. Where one of the two is NaN, max keeps the second operand and min its
// counterpart, so that a NaN is never lost.
template <bool labels, int G, class A>
ENTMASK_INLINE Softmax<typename A::T> softmax_group(const A& x, int64_t k, int64_t i, bool bounded) {
  using T = typename A::T;
  Vec<T> top = x.load_class(k, i), rest[G];
  IVec<T> label = IVec<T>{};
  if (labels) label += IVecElement<T>(k);
#pragma GCC unroll 8
  for (int g = 1; g < G; ++g) {
    const Vec<T> v = x.load_class(k + g, i);
    if constexpr (labels) label = v > top ? IVec<T>{} + IVecElement<T>(k + g) : label;
    rest[g] = min(top, v);
    top = max(v, top);
  }
  // A group that is only a part may be all -inf while another class is finite: then -inf - -inf must not make a NaN.
  const Vec<T> base = bounded ? max(splat<T>(kLeast<T>), top) : top;
  Softmax<T> p{top, Vec<T>{}, Vec<T>{}, label};
#pragma GCC unroll 8
  for (int g = 1; g < G; ++g) {
    const Vec<T> d = clamp_exponent<T>(rest[g] - base), e = exp_nonpositive<T>(d);
    p.z += e;
    p.s += e * d;
  }
  return p;
}

// The union of two disjoint sets of classes, a before b. The smaller maximum becomes one of the others:
//   f = exp(m_lo - m_hi): z = z_hi + f (z_lo + 1), s = s_hi + f (s_lo + (z_lo + 1) (m_lo - m_hi))
template <bool labels, class T>
ENTMASK_INLINE Softmax<T> merge(const Softmax<T>& a, const Softmax<T>& b) {
  const Vec<T> top = max(b.max, a.max), low = min(a.max, b.max);
  const Vec<T> base = max(splat<T>(kLeast<T>), top);
  const Vec<T> d = clamp_exponent<T>(low - base), f = exp_nonpositive<T>(d);
  const auto b_wins = b.max > a.max;
  const Vec<T> z_low = b_wins ? a.z : b.z, s_low = b_wins ? a.s : b.s;
  Softmax<T> p;
  p.max = top;
  p.z = (b_wins ? b.z : a.z) + f * (z_low + T(1));
  p.s = (b_wins ? b.s : a.s) + f * (s_low + (z_low + T(1)) * d);
  if constexpr (labels) p.label = b_wins ? b.label : a.label;
  return p;
}

// All classes of kWidth pixels: a known number K <= 8 in registers at once, else in groups of 8, 4 and 1.
template <bool labels, int K, class A>
ENTMASK_INLINE Softmax<typename A::T> softmax(const A& x, int64_t classes, int64_t i) {
  if constexpr (K > 0) {
    return softmax_group<labels, K>(x, 0, i, false);
  } else {
    Softmax<typename A::T> p = softmax_group<labels, 1>(x, 0, i, true);
    int64_t k = 1;
    for (; k + 8 <= classes; k += 8) p = merge<labels>(p, softmax_group<labels, 8>(x, k, i, true));
    if (k + 4 <= classes) {
      p = merge<labels>(p, softmax_group<labels, 4>(x, k, i, true));
      k += 4;
    }
    for (; k < classes; ++k) p = merge<labels>(p, softmax_group<labels, 1>(x, k, i, true));
    return p;
  }
}

}  // namespace entmask::cpu::ENTMASK_ISA
