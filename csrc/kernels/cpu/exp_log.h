// exp and log of vectors, with their errors (tests/test_cpu_math.py holds them to these over the whole range).
//
// exp_nonpositive(d), d <= 0, and add_exp, d <= 4: n = round(d / ln 2), r = d - n ln 2, e^r by a polynomial, times 2^n
// made in the exponent bits. d below about -87 (double: -709) gives exactly 0, so that a class at -inf adds exactly 0;
// NaN gives NaN. Relative error: float 1.2e-7 for d > -20, 3e-7 down to the smallest normal number (one float of ln 2
// is 1.9e-9 off, and n of these add up); double 3e-16 (ln 2 in two parts).
//
// AVX-512 has instructions for both ends: y = d / ln 2, t = y - floor(y), 2^t by a polynomial, scaled by 2^floor(y).
// Relative error 1.5e-7 + 4e-8 |y|: y is rounded once, and where that shows, e^d is small.
#pragma once

#include "simd.h"

namespace entmask::cpu::ENTMASK_ISA {

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

// d (or NaN), kept where exp_in_range is right: below kLowest e^d is 0 anyway, and 0 * d must not be 0 * inf.
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

// ln(u), u >= 1 and finite: u = 2^e m, m in [2/3, 4/3).
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

}  // namespace entmask::cpu::ENTMASK_ISA
