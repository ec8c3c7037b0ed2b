// Vectors as wide as the instruction set, exp and log on them, and conversion from and to the storage dtypes.
//
// Written with the vector extensions that GCC and Clang share, so that one source serves AVX-512, AVX2, SSE2 and NEON;
// intrinsics only where the extensions do not reach one instruction (max, min, half conversion). No standard library
// template is used in a kernel: an inline function compiled for AVX-512 could be the copy that the linker keeps for
// all.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../params.h"

#ifndef ENTMASK_ISA
#define ENTMASK_ISA baseline
#endif

#define ENTMASK_INLINE inline __attribute__((always_inline))

namespace entmask::cpu::ENTMASK_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct half_t {
  uint16_t bits;
};
struct bfloat_t {
  uint16_t bits;
};

// T: float or double, what the arithmetic is done in.
template <class T>
struct Simd;
template <>
struct Simd<float> {
  static constexpr int width = kVectorBytes / 4;
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Simd<double> {
  static constexpr int width = kVectorBytes / 8;
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename Simd<T>::V;
template <class T>
using IVec = typename Simd<T>::I;
template <class T>
using IVecElement = decltype(IVec<T>{}[0] + 0);
template <class T>
constexpr int kWidth = Simd<T>::width;

// Storage dtype S -> the dtype it is computed in.
template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

template <class To, class From>
ENTMASK_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
ENTMASK_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};  // value - 0: exact for every value, -0 included
}

// a > b ? a : b and a < b ? a : b, lane by lane: b where either is NaN.
#if defined(__AVX512F__)
ENTMASK_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b); }
ENTMASK_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
ENTMASK_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b); }
ENTMASK_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
ENTMASK_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm_max_ps((__m128)a, (__m128)b); }
ENTMASK_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm_min_ps((__m128)a, (__m128)b); }
#else
ENTMASK_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return a > b ? a : b; }
ENTMASK_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return a < b ? a : b; }
#endif
ENTMASK_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return a > b ? a : b; }
ENTMASK_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return a < b ? a : b; }

// v where the mask's bits are set, else 0: also for a NaN or an infinity.
template <class T>
ENTMASK_INLINE Vec<T> where(IVec<T> mask, Vec<T> v) {
  return bits_as<Vec<T>>(bits_as<IVec<T>>(v) & mask);
}

// sum + v in the lanes whose bits are set.
template <class T>
ENTMASK_INLINE Vec<T> add_where(IVec<T> mask, Vec<T> sum, Vec<T> v) {
#if defined(__AVX512F__)
  return mask ? sum + v : sum;  // one instruction
#else
  return sum + where<T>(mask, v);
#endif
}

// All bits in the lanes from `first` on.
template <class T>
ENTMASK_INLINE IVec<T> lanes_from(int64_t first) {
  IVec<T> lane;
  for (int i = 0; i < kWidth<T>; ++i) lane[i] = i;
  return lane >= IVecElement<T>(first);
}

template <class T>
ENTMASK_INLINE bool any(IVec<T> mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  bool found = false;
  for (int i = 0; i < kWidth<T>; ++i) found |= mask[i] != 0;
  return found;
#endif
}

// ---------------------------------------------------------------- exp and log
//
// exp_nonpositive(d), d <= 0: n = round(d / ln 2), r = d - n ln 2, e^r by a polynomial, times 2^n made in the exponent
// bits. d below about -87 (double: -709) gives exactly 0, so that a class at -inf adds exactly 0; NaN gives NaN.
// Relative error: float 1.2e-7 for d > -20, 3e-7 down to the smallest normal number (one float of ln 2 is 1.9e-9 off,
// and n of these add up); double 3e-16 (ln 2 in two parts).
//
// AVX-512 has instructions for both ends: y = d / ln 2, t = y - floor(y), 2^t by a polynomial, scaled by 2^floor(y).
// Relative error 1.5e-7 + 4e-8 |y|: y is rounded once, and where that shows, e^d is small.
template <class T>
struct ExpLog;

template <>
struct ExpLog<float> {
  static constexpr float kMagic = 12582912.0f + 127.0f;  // 1.5 * 2^23 + bias: the sum's low bits are the exponent field
  static constexpr int kMantissa = 23;
  static constexpr float kLowest = -88.02969f;  // n = -127: the scale's bits are those of 0
  static constexpr float kLog2e = 1.44269502f, kLn2Hi = 0.693147182f, kLn2Lo = 0;
  // e^r on |r| <= ln 2 / 2, minimax with the first two coefficients 1, relative error 3.1e-9
  static constexpr float kExp[] = {1.0f,
                                   1.0f,
                                   0.4999999403953552f,
                                   0.1666652113199234f,
                                   0.04166838899254799f,
                                   0.0083687175065279f,
                                   0.0013814596459269524f};
  // ln(1 + f) = f + f^2 q(f) on |f| <= 1/3, minimax, relative error 2.6e-8
  static constexpr float kLog[] = {-0.49999937415122986f, 0.33333197236061096f,  -0.2500782907009125f,
                                   0.20011182129383087f,  -0.16415736079216003f, 0.13995569944381714f,
                                   -0.1538989394903183f,  0.14027616381645203f};
  static constexpr int32_t kTwoThirds = 0x3f2aaaab;
  static constexpr float kLn2 = 0.693147182f;
};

template <>
struct ExpLog<double> {
  static constexpr double kMagic = 6755399441055744.0 + 1023.0;
  static constexpr int kMantissa = 52;
  static constexpr double kLowest = -709.0895657128241;
  static constexpr double kLog2e = 1.4426950408889634, kLn2Hi = 0.69314718036912382, kLn2Lo = 1.9082149292705877e-10;
  // Taylor, remainder 4e-18
  static constexpr double kExp[] = {
      1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  static constexpr int64_t kTwoThirds = 0x3fe5555555555555;
  static constexpr double kLn2 = 0.6931471805599453;
};

// d <= 0 (or NaN), kept where exp_in_range is right: below kLowest e^d is 0 anyway, and 0 * d must not be 0 * inf.
template <class T>
ENTMASK_INLINE Vec<T> clamp_exponent(Vec<T> d) {
  return max(splat<T>(ExpLog<T>::kLowest), d);
}

template <class T>
ENTMASK_INLINE Vec<T> exp_in_range(Vec<T> d) {
  using E = ExpLog<T>;
  const Vec<T> shifted = d * E::kLog2e + E::kMagic;
  const Vec<T> n = shifted - E::kMagic;
  Vec<T> r = d - n * E::kLn2Hi;
  if constexpr (E::kLn2Lo != 0) r = r - n * E::kLn2Lo;
  constexpr int terms = sizeof(E::kExp) / sizeof(T);
  Vec<T> p = splat<T>(E::kExp[terms - 1]);
#pragma GCC unroll 16
  for (int i = terms - 2; i >= 0; --i) p = p * r + E::kExp[i];
  return p * bits_as<Vec<T>>(bits_as<IVec<T>>(shifted) << E::kMantissa);
}

template <class T>
ENTMASK_INLINE Vec<T> exp_nonpositive(Vec<T> d) {
  return exp_in_range<T>(clamp_exponent<T>(d));
}

// z += e^d, s += e^d d; a d of -inf adds 0 to both.
template <class T>
ENTMASK_INLINE void add_exp(Vec<T> d, Vec<T>& z, Vec<T>& s) {
  d = clamp_exponent<T>(d);
  const Vec<T> e = exp_in_range<T>(d);
  z += e;
  s += e * d;
}

#if defined(__AVX512F__)
// 2^t on [0, 1), minimax with p(0) = 1, relative error 8.2e-8; `normal` is unset where e^d would not be a normal
// number.
struct Exp512 {
  __mmask16 normal;
  __m512 value;

  ENTMASK_INLINE explicit Exp512(Vec<float> d) {
    constexpr float kExp2[] = {1.0f, 0.69315131f, 0.24016444f, 0.05579995f, 0.00901699f, 0.00186715f};
    const __m512 y = (__m512)(d * ExpLog<float>::kLog2e);
    normal = _mm512_cmp_ps_mask(y, _mm512_set1_ps(-126), _CMP_NLE_UQ);
    const Vec<float> t = (Vec<float>)_mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vec<float> p = splat<float>(kExp2[5]);
#pragma GCC unroll 5
    for (int i = 4; i >= 0; --i) p = p * t + kExp2[i];
    value = _mm512_maskz_scalef_ps(normal, (__m512)p, y);
  }
};

template <>
ENTMASK_INLINE Vec<float> exp_nonpositive<float>(Vec<float> d) {
  return (Vec<float>)Exp512(d).value;
}

template <>
ENTMASK_INLINE void add_exp<float>(Vec<float> d, Vec<float>& z, Vec<float>& s) {
  const Exp512 e(d);
  z += (Vec<float>)e.value;
  s = (Vec<float>)_mm512_mask3_fmadd_ps(e.value, (__m512)d, (__m512)s, e.normal);
}
#endif

// ln(u), u in [1, 2^24): u = 2^e m, m in [2/3, 4/3).
template <class T>
ENTMASK_INLINE Vec<T> log_from_one(Vec<T> u) {
  using E = ExpLog<T>;
  const IVec<T> bits = bits_as<IVec<T>>(u);
  const IVec<T> e = (bits - E::kTwoThirds) >> E::kMantissa;
  const Vec<T> f = bits_as<Vec<T>>(bits - (e << E::kMantissa)) - T(1);
  const Vec<T> exponent = __builtin_convertvector(e, Vec<T>);
  if constexpr (sizeof(T) == 4) {
    constexpr int terms = sizeof(E::kLog) / sizeof(T);
    Vec<T> q = splat<T>(E::kLog[terms - 1]);
#pragma GCC unroll 16
    for (int i = terms - 2; i >= 0; --i) q = q * f + E::kLog[i];
    return exponent * E::kLn2 + ((q * f) * f + f);
  } else {
    // ln(1 + f) = 2 atanh(s), s = f / (2 + f), |s| <= 1/5: 2 s (1 + s^2 / 3 + s^4 / 5 + ...)
    const Vec<T> s = f / (f + T(2)), s2 = s * s;
    Vec<T> q = splat<T>(T(1) / 23);
#pragma GCC unroll 16
    for (int i = 21; i >= 3; i -= 2) q = q * s2 + T(1) / i;
    return exponent * E::kLn2 + (s * T(2) * s2 * q + s * T(2));
  }
}

// ln(1 + z), z >= 0, with full relative accuracy for tiny z: u = 1 + z rounds, (z - (u - 1)) / u is what it lost.
template <class T>
ENTMASK_INLINE Vec<T> log1p_nonnegative(Vec<T> z) {
  const Vec<T> u = z + T(1);
  return log_from_one<T>(u) + (z - (u - T(1))) / u;
}

// ---------------------------------------------------------------- storage
//
// load: kWidth elements converted to the compute dtype; store: back, rounded to nearest even.

ENTMASK_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
ENTMASK_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
ENTMASK_INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof v); }
ENTMASK_INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof v); }

typedef uint16_t U16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t U32 __attribute__((vector_size(kVectorBytes)));

ENTMASK_INLINE Vec<float> load(const bfloat_t* p) {
  U16 raw;
  __builtin_memcpy(&raw, p, sizeof raw);
  return bits_as<Vec<float>>(__builtin_convertvector(raw, U32) << 16);
}
ENTMASK_INLINE void store(bfloat_t* p, Vec<float> v) {
  const U32 bits = bits_as<U32>(v);
  U32 rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) >> 16;
  rounded = v != v ? (bits >> 16) | 0x40 : rounded;  // rounding up could carry a NaN into infinity
  const U16 raw = __builtin_convertvector(rounded, U16);
  __builtin_memcpy(p, &raw, sizeof raw);
}

ENTMASK_INLINE Vec<float> load(const half_t* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  U16 raw;
  __builtin_memcpy(&raw, p, sizeof raw);
  const U32 h = __builtin_convertvector(raw, U32);
  // The half's exponent and mantissa in a float's place are 2^112 too small, subnormals included.
  U32 magnitude = bits_as<U32>(bits_as<Vec<float>>((h & 0x7fff) << 13) * 0x1p112f);
  magnitude = (h & 0x7c00) == 0x7c00 ? ((h & 0x3ff) << 13) | 0x7f800000u : magnitude;
  return bits_as<Vec<float>>(magnitude | ((h & 0x8000) << 16));
#endif
}
ENTMASK_INLINE void store(half_t* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  const U32 bits = bits_as<U32>(v), sign = (bits >> 16) & 0x8000;
  const U32 magnitude = bits & 0x7fffffff;
  // Normal: rebias, round to nearest even at bit 13. Subnormal: adding 0.5 lines the mantissa up with the half's.
  const U32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const U32 subnormal = bits_as<U32>(bits_as<Vec<float>>(magnitude) + 0.5f) - 0x3f000000u;
  U32 h = magnitude < (113u << 23) ? subnormal : normal;
  h = magnitude >= 0x477ff000u ? U32{} + 0x7c00u : h;  // 65520 and above round to infinity
  h = magnitude > 0x7f800000u ? U32{} + 0x7e00u : h;
  const U16 raw = __builtin_convertvector(h | sign, U16);
  __builtin_memcpy(p, &raw, sizeof raw);
#endif
}

// The first n < kWidth elements; the others read as 0.
template <class S>
ENTMASK_INLINE Vec<Compute<S>> load(const S* p, int n) {
  S padded[kWidth<Compute<S>>] = {};
  for (int i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
template <class S>
ENTMASK_INLINE void store(S* p, Vec<Compute<S>> v, int n) {
  S padded[kWidth<Compute<S>>];
  store(padded, v);
  for (int i = 0; i < n; ++i) p[i] = padded[i];
}

// Every lane in double, pairwise.
ENTMASK_INLINE double sum(Vec<float> v) {
  double part[4] = {};
  for (int i = 0; i < kWidth<float>; i += 4)
    for (int j = 0; j < 4; ++j) part[j] += double(v[i + j]);
  return (part[0] + part[2]) + (part[1] + part[3]);
}
ENTMASK_INLINE double sum(Vec<double> v) {
  double total = 0;
  for (int i = 0; i < kWidth<double>; ++i) total += v[i];
  return total;
}

// ---------------------------------------------------------------- access
//
// A row of n >= kWidth pixels, the pixels of a class dense, class k at x + k * k_stride. Rows of other layouts are
// brought into this one first (stage.h).

// The hardware's own prefetch starts again at each page, and every class is a stream of its own: half a page ahead.
ENTMASK_INLINE void prefetch_ahead(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + 2048); }

template <class S>
struct Planar {
  using T = Compute<S>;
  S* x;
  int64_t k_stride, n;

  ENTMASK_INLINE Vec<T> load_class(int64_t k, int64_t i) const {
    const S* p = x + k * k_stride + i;
    prefetch_ahead(p);
    return load(p);
  }
  ENTMASK_INLINE void store_class(int64_t k, int64_t i, Vec<T> v) const { store(x + k * k_stride + i, v); }
};

// Where the vectors of a row of n pixels start: every kWidth; the last one is moved back to end with the row, so that a
// row's tail needs no code of its own (the pixels that two vectors share are computed twice, to the same value).
template <class T>
ENTMASK_INLINE int64_t vector_start(int64_t i, int64_t n) {
  return i + kWidth<T> > n ? n - kWidth<T> : i;
}

// One element in the compute dtype.
template <class S>
ENTMASK_INLINE Compute<S> scalar(const S& value) {
  if constexpr (sizeof(S) >= 4) {
    return value;
  } else {
    return load(&value, 1)[0];
  }
}

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls f with the number of classes as a constant where that has code of its own, else with 0. Each constant costs
// compile time: float64 has none.
template <class S, class F>
ENTMASK_INLINE auto with_classes(int64_t classes, F&& f) {
  if constexpr (sizeof(S) < 8) {
    switch (classes) {
      case 2:
        return f(Constant<2>{});
      case 3:
        return f(Constant<3>{});
      case 4:
        return f(Constant<4>{});
      case 8:
        return f(Constant<8>{});
    }
  }
  return f(Constant<0>{});
}

// All classes of a vector of pixels to x, and their maximum: any class but a NaN, which is for exp to see.
template <int K, class A>
ENTMASK_INLINE Vec<typename A::T> load_classes(const A& from, int64_t classes, int64_t i, Vec<typename A::T>* x) {
  Vec<typename A::T> top = x[0] = from.load_class(0, i);
#pragma GCC unroll 8
  for (int64_t k = 1; k < (K ? K : classes); ++k) {
    x[k] = from.load_class(k, i);
    top = max(x[k], top);
  }
  return top;
}

// Calls f(first, last) for groups of 8 classes: each adds up its own terms, so that sums of many stay accurate.
template <int K, class F>
ENTMASK_INLINE void for_each_group(int64_t classes, F&& f) {
  static_assert(K <= 8);
  if constexpr (K > 0) {
    f(int64_t(0), int64_t(K));
  } else {
    for (int64_t k = 0; k < classes; k += 8) f(k, k + 8 < classes ? k + 8 : classes);
  }
}

template <class S>
struct Type {
  using type = S;
};

// Calls f with the storage type of a dtype.
template <class F>
ENTMASK_INLINE auto with_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float64:
      return f(Type<double>{});
    case Dtype::float16:
      return f(Type<half_t>{});
    case Dtype::bfloat16:
      return f(Type<bfloat_t>{});
    default:
      return f(Type<float>{});
  }
}

}  // namespace entmask::cpu::ENTMASK_ISA
