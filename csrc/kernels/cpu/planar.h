// Rows of any layout as planar rows: channels_last, sliced, transposed, expanded, and rows shorter than a vector.
//
// A piece of a row is copied, class by class, into scratch memory that stays in L1 or L2, and the planar code runs on
// the copy. Elements are moved as they are; nothing is converted here.
#pragma once

#include "simd.h"

namespace entmask::cpu::ENTMASK_ISA {

constexpr int64_t kPieceElements = kMaxClasses * 16;  // at most, over all classes

// Pixels in a piece: a whole number of vectors, at most 128.
template <class T>
ENTMASK_INLINE int64_t piece_pixels(int64_t classes) {
  static_assert(kPieceElements / kMaxClasses >= kWidth<T>);
  const int64_t fit = kPieceElements / classes / kWidth<T> * kWidth<T>;
  return fit < 128 ? fit : 128;
}

// Elements that for_each_planar needs for a piece; for_each_planar_pair needs as many again for the result.
template <class S>
ENTMASK_INLINE int64_t piece_elements(int64_t classes) {
  return piece_pixels<Compute<S>>(classes) * classes;
}

// Storage elements as vectors of their bits: moved, not computed with.
template <int bytes>
struct BitsOf;
template <>
struct BitsOf<8> {
  typedef uint64_t V __attribute__((vector_size(kVectorBytes)));
};
template <>
struct BitsOf<4> {
  typedef uint32_t V __attribute__((vector_size(kVectorBytes)));
};
template <>
struct BitsOf<2> {
  typedef uint16_t V __attribute__((vector_size(kVectorBytes)));
};
template <class S>
using Bits = typename BitsOf<sizeof(S)>::V;

// The even elements of a, then of b, to a; the odd ones to b. zip is the way back.
template <int lanes, class V>
ENTMASK_INLINE void unzip(V& a, V& b) {
  V even, odd;
  for (int i = 0; i < lanes; ++i) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
  const V x = a, y = b;
  a = __builtin_shuffle(x, y, even);
  b = __builtin_shuffle(x, y, odd);
}
template <int lanes, class V>
ENTMASK_INLINE void zip(V& a, V& b) {
  V low, high;
  for (int i = 0; i < lanes; ++i) {
    low[i] = i / 2 + i % 2 * lanes;
    high[i] = low[i] + lanes / 2;
  }
  const V x = a, y = b;
  a = __builtin_shuffle(x, y, low);
  b = __builtin_shuffle(x, y, high);
}

// n pixels of K interleaved classes to rows of ld elements. For a power of two: unzipping neighbours and laying their
// odd halves behind their even ones moves the lowest bit of an element's place to the top, and log2 K such steps the
// class before the pixel.
template <int K, class S>
ENTMASK_INLINE void deinterleave(const S* __restrict x, int64_t n, S* __restrict to, int64_t ld) {
  int64_t i = 0;
  if constexpr ((K & (K - 1)) == 0) {
    constexpr int lanes = kVectorBytes / sizeof(S);
    for (; i + lanes <= n; i += lanes) {
      Bits<S> v[K], half[K];
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
        prefetch_ahead(x + i * K + j * lanes);
        __builtin_memcpy(&v[j], x + i * K + j * lanes, sizeof v[j]);
      }
#pragma GCC unroll 4
      for (int step = 1; step < K; step *= 2) {
#pragma GCC unroll 8
        for (int j = 0; j < K; j += 2) {
          half[j / 2] = v[j];
          half[(j + K) / 2] = v[j + 1];
          unzip<lanes>(half[j / 2], half[(j + K) / 2]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) v[j] = half[j];
      }
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) __builtin_memcpy(to + k * ld + i, &v[k], sizeof v[k]);
    }
  }
  for (; i < n; ++i)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) to[k * ld + i] = x[i * K + k];
}

template <int K, class S>
ENTMASK_INLINE void interleave(const S* __restrict from, int64_t ld, int64_t n, S* __restrict x) {
  int64_t i = 0;
  if constexpr ((K & (K - 1)) == 0) {
    constexpr int lanes = kVectorBytes / sizeof(S);
    for (; i + lanes <= n; i += lanes) {
      Bits<S> v[K], whole[K];
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) __builtin_memcpy(&v[k], from + k * ld + i, sizeof v[k]);
#pragma GCC unroll 4
      for (int step = 1; step < K; step *= 2) {
#pragma GCC unroll 8
        for (int j = 0; j < K; j += 2) {
          whole[j] = v[j / 2];
          whole[j + 1] = v[(j + K) / 2];
          zip<lanes>(whole[j], whole[j + 1]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) v[j] = whole[j];
      }
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) __builtin_memcpy(x + i * K + j * lanes, &v[j], sizeof v[j]);
    }
  }
  for (; i < n; ++i)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) x[i * K + k] = from[k * ld + i];
}

// n pixels of `classes` classes to rows of ld elements.
template <class S>
void stage(const S* x, int64_t k_stride, int64_t w_stride, int64_t classes, int64_t n, S* to, int64_t ld) {
  if (k_stride == 1 && w_stride == classes) {
    switch (classes) {
      case 2:
        return deinterleave<2>(x, n, to, ld);
      case 3:
        return deinterleave<3>(x, n, to, ld);
      case 4:
        return deinterleave<4>(x, n, to, ld);
      case 8:
        return deinterleave<8>(x, n, to, ld);
    }
  }
  if (k_stride < w_stride) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < classes; ++k) to[k * ld + i] = x[i * w_stride + k * k_stride];
  } else {
    for (int64_t k = 0; k < classes; ++k)
      for (int64_t i = 0; i < n; ++i) to[k * ld + i] = x[i * w_stride + k * k_stride];
  }
}

template <class S>
void unstage(const S* from, int64_t ld, int64_t classes, int64_t n, S* x, int64_t k_stride, int64_t w_stride) {
  if (k_stride == 1 && w_stride == classes) {
    switch (classes) {
      case 2:
        return interleave<2>(from, ld, n, x);
      case 3:
        return interleave<3>(from, ld, n, x);
      case 4:
        return interleave<4>(from, ld, n, x);
      case 8:
        return interleave<8>(from, ld, n, x);
    }
  }
  if (k_stride < w_stride) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < classes; ++k) x[i * w_stride + k * k_stride] = from[k * ld + i];
  } else {
    for (int64_t k = 0; k < classes; ++k)
      for (int64_t i = 0; i < n; ++i) x[i * w_stride + k * k_stride] = from[k * ld + i];
  }
}

// Calls f(row, offset, pixels) with planar rows that together are the n pixels at x: the row itself where it is planar,
// else staged pieces. A piece has at least kWidth pixels for f to compute: those from `pixels` on repeat the last one,
// so that what f writes for a piece may end up to a vector behind the row.
template <class S, class F>
ENTMASK_INLINE void for_each_planar(S* x, int64_t k_stride, int64_t w_stride, int64_t classes, int64_t n, S* piece,
                                    F&& f) {
  using T = Compute<S>;
  if (w_stride == 1 && n >= kWidth<T>) {
    f(Planar<S>{x, k_stride, n}, int64_t(0), n);
    return;
  }
  const int64_t ld = piece_pixels<T>(classes);
  for (int64_t i = 0; i < n; i += ld) {
    const int64_t count = n - i < ld ? n - i : ld;
    stage(x + i * w_stride, k_stride, w_stride, classes, count, piece, ld);
    int64_t padded = count;
    for (; padded < kWidth<T>; ++padded)
      for (int64_t k = 0; k < classes; ++k) piece[k * ld + padded] = piece[k * ld + count - 1];
    f(Planar<S>{piece, ld, padded}, i, count);
  }
}

// The same for a row that is read and one of the same shape that is written: f(from, to, offset).
template <class S, class F>
ENTMASK_INLINE void for_each_planar_pair(S* x, int64_t k_stride, int64_t w_stride, S* out, int64_t out_k_stride,
                                         int64_t out_w_stride, int64_t classes, int64_t n, S* piece, S* result, F&& f) {
  using T = Compute<S>;
  if (w_stride == 1 && out_w_stride == 1 && n >= kWidth<T>) {
    f(Planar<S>{x, k_stride, n}, Planar<S>{out, out_k_stride, n}, int64_t(0));
    return;
  }
  const int64_t ld = piece_pixels<T>(classes);
  for (int64_t i = 0; i < n; i += ld) {
    const int64_t count = n - i < ld ? n - i : ld;
    stage(x + i * w_stride, k_stride, w_stride, classes, count, piece, ld);
    int64_t padded = count;
    for (; padded < kWidth<T>; ++padded)
      for (int64_t k = 0; k < classes; ++k) piece[k * ld + padded] = piece[k * ld + count - 1];
    f(Planar<S>{piece, ld, padded}, Planar<S>{result, ld, padded}, i);
    unstage(result, ld, classes, count, out + i * out_w_stride, out_k_stride, out_w_stride);
  }
}

}  // namespace entmask::cpu::ENTMASK_ISA
