// Vectors as wide as the instruction set, and conversion from and to the storage dtypes.
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
ENTMASK_INLINE Vec<T> keep_where(IVec<T> mask, Vec<T> v) {
  return bits_as<Vec<T>>(bits_as<IVec<T>>(v) & mask);
}

// sum + v in the lanes whose bits are set.
template <class T>
ENTMASK_INLINE Vec<T> add_where(IVec<T> mask, Vec<T> sum, Vec<T> v) {
#if defined(__AVX512F__)
  return mask ? sum + v : sum;  // one instruction
#else
  return sum + keep_where<T>(mask, v);
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
// brought into this one first (planar.h).

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

// Adds the sum of a group of exponentials, and what rounding lost to the next: beside the maximum's own 1 the sums of
// many other groups would be lost one by one.
template <class T>
ENTMASK_INLINE void add_compensated(Vec<T>& sum, Vec<T>& lost, Vec<T> v) {
  const Vec<T> kept = v - lost, total = sum + kept;
  lost = (total - sum) - kept;
  sum = total;
}

// One vector per class: in registers where the number of classes is a constant, else in memory given for them.
template <class T, int K>
struct ClassVectors {
  Vec<T> own[K];
  ENTMASK_INLINE explicit ClassVectors(Vec<T>*) {}
  ENTMASK_INLINE Vec<T>* data() { return own; }
  ENTMASK_INLINE Vec<T>& operator[](int64_t k) { return own[k]; }
};
template <class T>
struct ClassVectors<T, 0> {
  Vec<T>* given;
  ENTMASK_INLINE explicit ClassVectors(Vec<T>* memory) : given(memory) {}
  ENTMASK_INLINE Vec<T>* data() { return given; }
  ENTMASK_INLINE Vec<T>& operator[](int64_t k) { return given[k]; }
};

// Arrays one behind the other in a call's scratch memory, each 64-byte aligned. Taken from a null pointer they tell how
// much memory they need.
struct Scratch {
  char* at;
  explicit Scratch(void* memory) : at(static_cast<char*>(memory)) {}
  template <class E>
  E* take(int64_t n) {
    E* const taken = reinterpret_cast<E*>(at);
    at = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(at) + (uintptr_t(n) * sizeof(E) + 63) / 64 * 64);
    return taken;
  }
  size_t bytes() const { return size_t(reinterpret_cast<uintptr_t>(at)); }
};

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
