// Softmax and uncertainty of vectors of pixels, in one pass over the classes, with the argmax on request.
//
//   m = max_k x_k, over the classes other than one maximum: e = exp(x - m), z = sum e, s = sum e (x - m)
//   H = ln(1 + z) - s / (1 + z)
//
// Both terms are >= 0 and z holds no 1 from the maximum itself, so nothing cancels: an entropy of 1e-30 keeps its
// relative accuracy. One log per pixel, and one exp less than there are classes. The same of the two largest
// probabilities, with e2 the largest of the others' e:
//   1 - p1 = z / (1 + z),   1 - (p1 - p2) = (z + e2) / (1 + z)
// What a caller does not use (s, second, label) is not computed.
#pragma once

#include "exp_log.h"

namespace entmask::cpu::ENTMASK_ISA {

// The lowest finite number: stands in for a maximum of -inf.
template <class T>
constexpr T kLeast = sizeof(T) == 4 ? T(-3.4028234663852886e38) : T(-1.7976931348623157e308);

// A greater maximum moves the sums only where it is by more than this above what they are relative to: each move then
// shrinks by e^-kSlack what it rounds, so that errors do not add up over many classes in ascending order.
constexpr int kSlack = 2;

// The maximum of some classes, the sums over the others relative to base, with what rounding lost of them, the largest
// of these, and the first index that reaches the maximum. In the end the base is the maximum.
template <class T>
struct Softmax {
  Vec<T> max, base, z, s, z_lost, s_lost, second;
  IVec<T> label;

  // f = exp(base - to): z <- f z, s <- f (s + z (base - to))
  ENTMASK_INLINE void move(Vec<T> to);
};

// Turns +inf, NaN and "every class -inf" into NaN: m - m is 0 only for a finite maximum. A NaN class is in z already.
template <class T>
ENTMASK_INLINE Vec<T> entropy_of(const Softmax<T>& p, T scale, T ceiling) {
  const Vec<T> u = p.z + T(1);
  const Vec<T> h = log_from_one<T>(u) + ((p.z - (u - T(1))) - p.s) / u + (p.max - p.max);
  return min(splat<T>(ceiling), h * scale);  // min(c, NaN) is NaN
}

// Least confidence (1 - p1) times scale, or the margin 1 - (p1 - p2) with scale 1, at most 1; NaN as above.
template <class T>
ENTMASK_INLINE Vec<T> doubt_of(const Softmax<T>& p, bool margin, T scale) {
  Vec<T> rest = p.z;
  if (margin) rest += exp_nonpositive<T>(p.second - p.max);
  return min(splat<T>(1), rest / (p.z + T(1)) * scale + (p.max - p.max));
}

// p1, the probability of the label; NaN as above.
template <class T>
ENTMASK_INLINE Vec<T> confidence_of(const Softmax<T>& p) {
  return T(1) / (p.z + T(1)) + (p.max - p.max);
}

template <class T>
ENTMASK_INLINE void Softmax<T>::move(Vec<T> to) {
  if (!any<T>(to != base)) return;  // most often
  Vec<T> f = Vec<T>{}, moment = Vec<T>{};
  add_exp<T>(base - to, f, moment);
  s = s * f + z * moment;
  z *= f;
  s_lost = s_lost * f + z_lost * moment;
  z_lost *= f;
  base = to;
}

enum class Part { all, first, more };  // of the classes

// Adds G classes from k on to p, which is empty but for Part::more. Each class is folded with the maximum so far into a
// (larger, smaller) pair, so that the smaller ones of all pairs are exactly the classes other than one maximum. Where
// one of the two is NaN, max keeps the second operand and min its counterpart, so that a NaN is never lost.
template <bool labels, int G, Part part, class A>
ENTMASK_INLINE void add_classes(const A& x, int64_t k, int64_t i, Softmax<typename A::T>& p) {
  using T = typename A::T;
  constexpr bool first = part != Part::more;
  Vec<T> top = first ? x.load_class(k, i) : p.max, rest[G];
  if (first && labels) p.label = IVec<T>{} + IVecElement<T>(k);
#pragma GCC unroll 8
  for (int g = first; g < G; ++g) {
    const Vec<T> v = x.load_class(k + g, i);
    if constexpr (labels) p.label = v > top ? IVec<T>{} + IVecElement<T>(k + g) : p.label;
    rest[g] = min(top, v);
    top = max(v, top);
  }
  Vec<T> second = first ? splat<T>(-T(__builtin_inf())) : p.second;
#pragma GCC unroll 8
  for (int g = first; g < G; ++g) second = max(rest[g], second);
  p.second = second;
  // A part may be all -inf while another class is finite: then -inf - -inf must not make a NaN.
  const Vec<T> finite = part == Part::all ? top : max(splat<T>(kLeast<T>), top);
  if constexpr (first)
    p.base = finite;
  else
    p.move(finite > p.base + T(kSlack) ? finite : p.base);
  Vec<T> z = Vec<T>{}, sum = Vec<T>{};
#pragma GCC unroll 8
  for (int g = first; g < G; ++g) add_exp<T>(rest[g] - p.base, z, sum);
  if constexpr (first) {
    p.z = z;
    p.s = sum;
  } else {
    add_compensated<T>(p.s, p.s_lost, sum);
    add_compensated<T>(p.z, p.z_lost, z);
  }
  p.max = top;
}

// All classes of kWidth pixels: a known number K <= 8 in registers at once, else in groups of 8, 4, 2 and 1.
template <bool labels, int K, class A>
ENTMASK_INLINE Softmax<typename A::T> softmax(const A& x, int64_t classes, int64_t i) {
  using T = typename A::T;
  Softmax<T> p{};
  if constexpr (K > 0) {
    add_classes<labels, K, Part::all>(x, 0, i, p);
  } else {
    int64_t k = classes >= 8 ? 8 : classes >= 4 ? 4 : 2;
    if (k == 8)
      add_classes<labels, 8, Part::first>(x, 0, i, p);
    else if (k == 4)
      add_classes<labels, 4, Part::first>(x, 0, i, p);
    else
      add_classes<labels, 2, Part::first>(x, 0, i, p);
    for (; k + 8 <= classes; k += 8) add_classes<labels, 8, Part::more>(x, k, i, p);
    for (; k + 4 <= classes; k += 4) add_classes<labels, 4, Part::more>(x, k, i, p);
    for (; k + 2 <= classes; k += 2) add_classes<labels, 2, Part::more>(x, k, i, p);
    if (k < classes) add_classes<labels, 1, Part::more>(x, k, i, p);
    p.move(max(splat<T>(kLeast<T>), p.max));
  }
  return p;
}

}  // namespace entmask::cpu::ENTMASK_ISA
