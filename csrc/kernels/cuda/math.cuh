// Softmax and uncertainty without cancellation, and sums in a fixed order.
//
// With m the greatest logit, z = sum over the other classes of e^(x - m) and s = sum of e^(x - m) (x - m):
//   H = log1p(z) - s / (1 + z)         (both terms >= 0; a sure pixel's tiny entropy keeps its relative accuracy)
//   1 - p1 = z / (1 + z),  1 - (p1 - p2) = (z + e2) / (1 + z),  e2 the greatest of the others' e^(x - m)
// "The others" are found by folding: of the greatest so far and the next logit the loser is an "other", so that the
// greatest is left out by position, not subtracted. A NaN survives as winner or loser; +inf, or all at -inf, is caught
// by m - m; a class at -inf adds exactly 0.
#pragma once

#include "load.cuh"

namespace entmask::cuda {

// e^v for v <= 2 with an error of e^v (2.4e-7 + 7.5e-8 |v|): the hardware's 2^x of v / ln 2, rounded once. e^v |v| has
// a maximum, so that the part that grows with |v| never shows in a sum.
__device__ __forceinline__ float exponential(float v) { return power_of_two(v * 1.44269504f); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }

// log(1 + v) for v >= 0 to 1e-7 of its value: with 2^e the power of two for which m = (1 + v) 2^-e - 1 is in [-1/4,
// 1/2), e ln 2 + log(1 + m), and m = v 2^-e + (2^-e - 1) is v itself where v is small. log(1 + m) = m + m^2 q(m), q of
// degree 7 with the least greatest relative error (fitted).
__device__ __forceinline__ float log_one_plus(float v) {
  constexpr int32_t three_quarters = 0x3f400000, one = 0x3f800000, exponent_bits = -(1 << 23);
  const float sum = v + 1;
  int32_t bits;
  memcpy(&bits, &sum, sizeof(bits));
  const int32_t exponent = (bits - three_quarters) & exponent_bits, scale_bits = one - exponent;
  float scale;
  memcpy(&scale, &scale_bits, sizeof(scale));
  const float m = fmaf(v, scale, scale - 1);
  float q = 0.054130807518959045f;
  q = fmaf(q, m, -0.1206723153591156f);
  q = fmaf(q, m, 0.14983916282653809f);
  q = fmaf(q, m, -0.16822829842567444f);
  q = fmaf(q, m, 0.19977077841758728f);
  q = fmaf(q, m, -0.24993441998958588f);
  q = fmaf(q, m, 0.3333354890346527f);
  q = fmaf(q, m, -0.5000005960464478f);
  constexpr float log_two = 0.693147180559945309f / (1 << 23);
  return fmaf(static_cast<float>(exponent), log_two, fmaf(q * m, m, m));
}
__device__ __forceinline__ double log_one_plus(double v) { return log1p(v); }
__device__ __forceinline__ float greater_of(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double greater_of(double a, double b) { return fmax(a, b); }

// e^d d for e = e^d, with 0 for d = -inf: e is 0 or NaN wherever the bound holds.
template <typename F>
__device__ __forceinline__ F times_log(F e, F d) {
  return e * greater_of(d, static_cast<F>(-1000));
}

// z and s of one pixel, relative to m; label: the first greatest class, NaN being greatest; second: the greatest logit
// of the other classes, next: the first of them that has it (of no meaning where it is -inf). What a kernel does not
// use costs it nothing.
template <typename F>
struct Softmax {
  F max, others, dot;
  int32_t label;
  F second = -INFINITY;
  int32_t next = -1;

  // 0, or NaN where m is infinite: a logit is +inf, or all are -inf.
  __device__ __forceinline__ F poison() const { return max - max; }
  // In nats.
  __device__ __forceinline__ F entropy() const {
    return log_one_plus(others) - dot * reciprocal(1 + others) + poison();
  }
  __device__ __forceinline__ F second_exponential() const { return exponential(second - max); }
  // 1 - p1, or with margin 1 - (p1 - p2).
  __device__ __forceinline__ F doubt(bool margin) const {
    return (others + (margin ? second_exponential() : 0)) * reciprocal(1 + others) + poison();
  }
  // 1 / sum of e^(x - m): the probability of the label.
  __device__ __forceinline__ F scale() const { return reciprocal(1 + others) + poison(); }
};

// Whether v takes the lead: greater, or the first NaN.
template <typename F>
__device__ __forceinline__ bool leads(F v, F max) {
  return !(v <= max) && max == max;
}

// second and next after class k, v: of two that meet the one behind. The leader is the earlier of the two, and no class
// behind is greater than it.
template <typename F>
__device__ __forceinline__ void leave_behind(F& second, int32_t& next, F max, int32_t label, F v, int32_t k,
                                             bool lead) {
  const F loser = lead ? max : v;
  const bool gains = lead || loser > second;
  next = gains ? (lead ? label : k) : next;
  second = gains ? loser : second;
}

// Pixel i of the classes in registers.
template <typename S, typename F = typename S::F>
__device__ __forceinline__ Softmax<F> softmax_of(const F (&x)[S::chunk][S::pixels], int i, int64_t classes) {
  Softmax<F> r{x[0][i], 0, 0, 0};
  F loser[S::chunk];
#pragma unroll
  for (int k = 1; k < S::chunk; ++k) {
    const F v = x[k][i];
    const bool lead = leads(v, r.max);
    loser[k] = lead ? r.max : v;
    leave_behind(r.second, r.next, r.max, r.label, v, k, lead);
    r.max = lead ? v : r.max;
    r.label = lead ? k : r.label;
  }
#pragma unroll
  for (int k = 1; k < S::chunk; ++k) {
    if (S::has(k, classes)) {
      const F d = loser[k] - r.max, e = exponential(d);
      r.others += e;
      r.dot += times_log(e, d);
    }
  }
  return r;
}

// The same, for gradients: the classes become e^(x - m) and d their x - m.
template <typename S, typename F = typename S::F>
__device__ __forceinline__ Softmax<F> exponentials(F (&x)[S::chunk][S::pixels], F (&d)[S::chunk], int i,
                                                   int64_t classes) {
  Softmax<F> r{x[0][i], 0, 0, 0};
#pragma unroll
  for (int k = 1; k < S::chunk; ++k) {
    const bool lead = leads(x[k][i], r.max);
    leave_behind(r.second, r.next, r.max, r.label, x[k][i], k, lead);
    r.max = lead ? x[k][i] : r.max;
    r.label = lead ? k : r.label;
  }
#pragma unroll
  for (int k = 0; k < S::chunk; ++k) {
    if (S::has(k, classes)) {
      d[k] = x[k][i] - r.max;
      x[k][i] = exponential(d[k]);
      r.others += k == r.label ? 0 : x[k][i];
      r.dot += times_log(x[k][i], d[k]);
    } else {
      d[k] = x[k][i] = 0;
    }
  }
  return r;
}

// Adds v to a sum and keeps what rounding lost for the next addition, so that the errors of many do not add up.
template <typename F>
__device__ __forceinline__ void add_compensated(F& sum, F& lost, F v) {
  const F kept = v - lost, total = sum + kept;
  lost = (total - sum) - kept;
  sum = total;
}

// The same for any number of classes, a chunk at a time. Sums are kept relative to a reference that follows the
// greatest logit only when that has gained `slack` on it: each change then shrinks what it rounds by e^-slack, so that
// errors do not add up over many classes in ascending order, and d < slack, so that little cancels when the sums are
// moved to m at the end.
template <typename F>
struct SoftmaxStream {
  static constexpr F slack = 2;
  static constexpr F lowest = sizeof(F) == 8 ? -1.7976931348623157e308 : static_cast<F>(-3.402823466e38f);
  F max = -INFINITY;
  F reference = lowest;  // finite as long as the logits are, so that a class at -inf is at -inf from it
  F others = 0, dot = 0, others_lost = 0, dot_lost = 0;
  int32_t label = 0;
  F second = -INFINITY;
  int32_t next = -1;

  __device__ __forceinline__ bool ahead() const { return max > reference + slack; }
  // To where the reference is: nothing changes.
  __device__ __forceinline__ void move(F to) {
    const F d = reference - to, e = exponential(d);
    dot = e * dot + times_log(e, d) * others;
    others *= e;
    reference = to;
  }
  __device__ __forceinline__ void follow() {
    const bool moves = ahead();
    others_lost = moves ? 0 : others_lost;
    dot_lost = moves ? 0 : dot_lost;
    move(moves ? max : reference);
  }
  // Compares the leader with class k; v, its logit, becomes that of the loser.
  __device__ __forceinline__ void compare(F& v, int32_t k) {
    const bool lead = leads(v, max);
    const F loser = lead ? max : v;
    leave_behind(second, next, max, label, v, k, lead);
    max = lead ? v : max;
    label = lead ? k : label;
    v = loser;
  }
  __device__ __forceinline__ Softmax<F> finish() {
    move(max);
    return {max, others, dot, label, second, next};
  }
};

// Adds classes `first` and up of the thread's pixels; one that is not there is -inf, as load_classes leaves it. x is
// used up.
template <int CHUNK, int PIXELS, typename F>
__device__ __forceinline__ void add_classes(SoftmaxStream<F> (&stream)[PIXELS], F (&x)[CHUNK][PIXELS], int32_t first) {
  bool ahead = false;
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) {
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) stream[i].compare(x[k][i], first + k);
    ahead = ahead || stream[i].ahead();
  }
  // Seldom after the first chunk. One branch for all pixels, and selections in it: a branch a pixel the compiler turns
  // into selections, with which every chunk computes every move.
  if (ahead) {
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) stream[i].follow();
  }
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) {
    F sum = 0, product = 0;
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) {
      const F d = x[k][i] - stream[i].reference, e = exponential(d);
      sum += e;
      product += times_log(e, d);
    }
    add_compensated(stream[i].others, stream[i].others_lost, sum);
    add_compensated(stream[i].dot, stream[i].dot_lost, product);
  }
}

// Softmax of the thread's pixels; x is left with the classes where S::classes > 0.
template <typename S>
__device__ __forceinline__ void read_softmax(Softmax<typename S::F> (&out)[S::pixels],
                                             typename S::F (&x)[S::chunk][S::pixels],
                                             const typename S::T* p,  // the first class of the first pixel
                                             int64_t class_stride, int64_t classes) {
  if constexpr (S::classes > 0) {
    load_classes<S>(x, p, class_stride, classes);
#pragma unroll
    for (int i = 0; i < S::pixels; ++i) out[i] = softmax_of<S>(x, i, classes);
  } else {
    SoftmaxStream<typename S::F> stream[S::pixels];
    for (int64_t first = 0; first < classes; first += S::chunk, p += S::chunk * class_stride) {
      load_classes<S>(x, p, class_stride, classes - first);
      add_classes(stream, x, static_cast<int32_t>(first));
    }
#pragma unroll
    for (int i = 0; i < S::pixels; ++i) out[i] = stream[i].finish();
  }
}

// What 1 - p1 and 1 - (p1 - p2) are multiplied by.
inline double top_two_scale(Uncertainty uncertainty, int64_t classes) {
  return uncertainty == Uncertainty::margin ? 1 : static_cast<double>(classes) / static_cast<double>(classes - 1);
}

// Clamps to [0, 1]; NaN stays.
template <typename F>
__device__ __forceinline__ F clamp_unit(F v) {
  return v < 0 ? 0 : v > 1 ? 1 : v;
}

// The sum of a thread's few values, pairwise.
template <typename F, int N>
__device__ __forceinline__ F pairwise_sum(const F (&v)[N]) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    F half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) half[i] = v[2 * i] + v[2 * i + 1];
    return pairwise_sum(half);
  }
}

// The sum over `width` lanes (a power of two, aligned), in every one of them. All lanes of the warp take part.
template <typename F>
__device__ __forceinline__ F sum_lanes(F v, int width = 32) {
  for (int distance = width / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(full_warp, v, distance);
  return v;
}

// The warp's sums of N values a lane (N a power of two, at most 32) with about N shuffles instead of 5 N: at each step
// a lane keeps one half of its values and gives the other half to its partner. Lane l ends with the sum of value l /
// (32 / N).
template <int N, typename F>
__device__ __forceinline__ F sum_lanes_spread(F (&v)[N]) {
  const int lane = threadIdx.x & 31;
  int distance = 16;
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if (i < half) {
        const F kept = upper ? v[half + i] : v[i], given = upper ? v[i] : v[half + i];
        v[i] = kept + __shfl_xor_sync(full_warp, given, distance);
      }
    }
    distance /= 2;
  }
  F sum = v[0];
  for (; distance > 0; distance /= 2) sum += __shfl_xor_sync(full_warp, sum, distance);
  return sum;
}

}  // namespace entmask::cuda
