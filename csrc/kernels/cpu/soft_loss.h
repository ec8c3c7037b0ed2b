// What the soft loss's forward and backward share: the walk over the rows of two tensors, which may differ in dtype and
// layout, and the pixels that count.
#pragma once

#include "exp_log.h"
#include "grid.h"
#include "planar.h"

namespace entmask::cpu::ENTMASK_ISA {

ENTMASK_INLINE Grid whole_image(const int64_t (&size)[3]) {
  return {{size[0], size[1], size[2]}, {size[0], size[1], size[2]}, {1, 1, 1}};
}

ENTMASK_INLINE int64_t soft_loss_items(const SoftLossParams& p) { return strip_items(whole_image(p.size), p.batch); }

// n <= ld pixels of `classes` classes, of the storage dtype S, as rows of ld elements of the compute dtype T; and back.
// `raw` has room for the piece in S, and for a vector behind it.
template <class S, class T>
void widen_piece(const S* x, int64_t k_stride, int64_t w_stride, int64_t classes, int64_t n, T* to, int64_t ld,
                 void* raw) {
  S* const piece = static_cast<S*>(raw);
  stage(x, k_stride, w_stride, classes, n, piece, ld);
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t i = 0; i < n; i += kWidth<Compute<S>>) {
      const Vec<Compute<S>> v = load(piece + k * ld + i);
      for (int64_t j = 0; j < kWidth<Compute<S>> && i + j < ld; ++j) to[k * ld + i + j] = T(v[j]);
    }
  }
}
template <class S, class T>
void narrow_piece(const T* from, int64_t ld, int64_t classes, int64_t n, S* x, int64_t k_stride, int64_t w_stride,
                  void* raw) {
  S* const piece = static_cast<S*>(raw);
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t i = 0; i < n; i += kWidth<Compute<S>>) {
      Vec<Compute<S>> v{};
      for (int64_t j = 0; j < kWidth<Compute<S>> && i + j < ld; ++j) v[j] = Compute<S>(from[k * ld + i + j]);
      store(piece + k * ld + i, v);
    }
  }
  unstage(piece, ld, classes, n, x, k_stride, w_stride);
}

// A tensor [N, K, D, H, W], which may be of another dtype than the one that is computed in.
struct SoftRows {
  void* data;
  Dtype dtype;
  Strides stride;

  ENTMASK_INLINE int64_t offset(int64_t n, int64_t z, int64_t y, int64_t x) const {
    return n * stride.n + z * stride.d + y * stride.h + x * stride.w;
  }
  template <class T>
  void read(int64_t offset, int64_t classes, int64_t n, T* to, int64_t ld, void* raw) const {
    with_dtype(dtype, [&](auto s) {
      using S = typename decltype(s)::type;
      if constexpr (sizeof(Compute<S>) <= sizeof(T))
        widen_piece(static_cast<const S*>(data) + offset, stride.c, stride.w, classes, n, to, ld, raw);
    });
  }
  template <class T>
  void write(int64_t offset, int64_t classes, int64_t n, const T* from, int64_t ld, void* raw) const {
    with_dtype(dtype, [&](auto s) {
      using S = typename decltype(s)::type;
      if constexpr (sizeof(Compute<S>) <= sizeof(T))
        narrow_piece(from, ld, classes, n, static_cast<S*>(data) + offset, stride.c, stride.w, raw);
    });
  }
};

template <class T>
struct SoftScratch {
  void* raw;
  T *x, *y, *out;   // pieces
  Vec<T>* classes;  // two vectors per class
  size_t bytes;

  SoftScratch(const SoftLossParams& p, void* memory) {
    Scratch scratch(memory);
    raw = scratch.take<double>(piece_elements<T>(p.classes) + kVectorBytes);
    x = scratch.take<T>(piece_elements<T>(p.classes));
    y = scratch.take<T>(piece_elements<T>(p.classes));
    out = scratch.take<T>(piece_elements<T>(p.classes));
    classes = scratch.take<Vec<T>>(2 * p.classes);
    bytes = scratch.bytes();
  }
};

// Whether each of n pixels counts, -1 (all bits) or 0; the vector behind them does not. Returns how many do.
template <class I>
ENTMASK_INLINE int64_t load_where(const bool* where, int64_t stride, int64_t n, int64_t room, I* out) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = where && !where[i * stride] ? I(0) : I(-1);
    count -= out[i];
  }
  for (int64_t i = n; i < n + room; ++i) out[i] = 0;
  return count;
}

// Calls row(x, y, out, where) for planar rows that together are those of items [begin, end), and begin_row(item, pixels
// that count) before those of a row. Rows of the same dtype that lie planar are used as they are, S being that dtype;
// others are brought into the compute dtype first, a piece at a time. Without a gradient out is not written.
template <class S, class B, class F>
ENTMASK_INLINE void for_each_soft_row(const SoftLossParams& p, const SoftRows& out, int64_t begin, int64_t end,
                                      const SoftScratch<Compute<S>>& scratch, B&& begin_row, F&& row) {
  using T = Compute<S>;
  using I = IVecElement<T>;
  const SoftRows x{const_cast<void*>(p.logits), p.dtype, p.logits_stride};
  const SoftRows y{const_cast<void*>(p.target), p.target_dtype, p.target_stride};
  const Strides& ws = p.where_stride;
  const bool planar = p.dtype == p.target_dtype && x.stride.w == 1 && y.stride.w == 1 && out.stride.w == 1;
  const Grid g = whole_image(p.size);
  const int64_t splits = strip_splits(g), width = g.size[2], ld = piece_pixels<T>(p.classes);
  I where[kChunk + kWidth<T>];
  for (int64_t index = begin; index < end; ++index) {
    const Item item(g, splits, index);
    for (int64_t r = item.first; r < item.last; ++r) {
      const int64_t n = item.n, z = item.z(r), y0 = item.y(r);
      for (int64_t x0 = 0; x0 < width; x0 += kChunk) {
        const int64_t count = width - x0 < kChunk ? width - x0 : kChunk;
        const bool* const pixels = p.where ? p.where + n * ws.n + z * ws.d + y0 * ws.h + x0 * ws.w : nullptr;
        begin_row(index, count, load_where(pixels, ws.w, count, kWidth<T>, where));
        const int64_t x_at = x.offset(n, z, y0, x0), y_at = y.offset(n, z, y0, x0), out_at = out.offset(n, z, y0, x0);
        if (planar && count >= kWidth<T>) {
          row(Planar<S>{static_cast<S*>(x.data) + x_at, x.stride.c, count},
              Planar<S>{static_cast<S*>(y.data) + y_at, y.stride.c, count},
              Planar<S>{static_cast<S*>(out.data) + (out.data ? out_at : 0), out.stride.c, count}, where);
          continue;
        }
        for (int64_t i = 0; i < count; i += ld) {
          const int64_t some = count - i < ld ? count - i : ld;
          x.read(x_at + i * x.stride.w, p.classes, some, scratch.x, ld, scratch.raw);
          y.read(y_at + i * y.stride.w, p.classes, some, scratch.y, ld, scratch.raw);
          int64_t padded = some;
          for (; padded < kWidth<T>; ++padded)
            for (int64_t k = 0; k < p.classes; ++k) {
              scratch.x[k * ld + padded] = scratch.x[k * ld + some - 1];
              scratch.y[k * ld + padded] = scratch.y[k * ld + some - 1];
            }
          row(Planar<T>{scratch.x, ld, padded}, Planar<T>{scratch.y, ld, padded}, Planar<T>{scratch.out, ld, padded},
              where + i);
          if (out.data) out.write(out_at + i * out.stride.w, p.classes, some, scratch.out, ld, scratch.raw);
        }
      }
    }
  }
}

// Calls f with the storage type of both tensors, or with the compute type where they differ.
template <class F>
ENTMASK_INLINE auto with_soft_dtype(const SoftLossParams& p, F&& f) {
  if (p.dtype == p.target_dtype) return with_dtype(p.dtype, f);
  return p.dtype == Dtype::float64 || p.target_dtype == Dtype::float64 ? f(Type<double>{}) : f(Type<float>{});
}

// e_k = exp(x_k - max) and f_k = exp(y_k - max) of a vector of pixels, from the logits, and their sums. KL: the sums
// but for the maximum's own 1, beside which a sure softmax's other classes would be lost, and the sum of f_k (ln q_k -
// ln p_k) but for the whole sums' logarithms.
template <class T>
struct SoftSums {
  Vec<T> x, y, moment;
};
template <int K, bool KL, class T>
ENTMASK_INLINE SoftSums<T> soft_exponentials(int64_t classes, Vec<T> x_top, Vec<T> y_top, ClassVectors<T, K>& e,
                                             ClassVectors<T, K>& f) {
  SoftSums<T> sums{}, lost{}, greatest{};
  for_each_group<K>(classes, [&](int64_t first, int64_t last) {
    SoftSums<T> part{};
#pragma GCC unroll 8
    for (int64_t k = first; k < last; ++k) {
      const Vec<T> a = e[k] - x_top, b = f[k] - y_top;
      e[k] = exp_nonpositive<T>(a);
      f[k] = exp_nonpositive<T>(b);
      if constexpr (KL) {
        // Of the greatest so far and the next the smaller is added. A NaN is: the greatest is one only where all are.
        part.x += min(greatest.x, e[k]);
        part.y += min(greatest.y, f[k]);
        greatest.x = max(e[k], greatest.x);
        greatest.y = max(f[k], greatest.y);
        // b - a is infinite or NaN where a class cannot be: it counts only where q_k is not 0.
        part.moment = add_where<T>(~(f[k] == T(0)), part.moment, f[k] * (b - a));
      } else {
        part.x += e[k];
        part.y += f[k];
      }
    }
    add_compensated<T>(sums.x, lost.x, part.x);
    add_compensated<T>(sums.y, lost.y, part.y);
    sums.moment += part.moment;
  });
  return sums;
}

}  // namespace entmask::cpu::ENTMASK_ISA
