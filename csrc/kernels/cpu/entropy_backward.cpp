// Gradient of the uncertainty, per pixel or pooled, with respect to the logits. The softmax is computed again.
//
// Entropy:
//   p_j = e_j / u, e_j = exp(x_j - m), u = sum_j e_j, H = ln u - s / u, s = sum_j e_j (x_j - m)
//   dH/dx_j = -p_j (ln p_j + H) = p_j (s / u - (x_j - m))
//
// The logarithms cancel in the formula, so that they are never computed and the gradient of a tiny entropy stays
// accurate.
//
// The two largest probabilities, e2 = the second largest e, z = u - 1 without the subtraction:
//   d(1 - p1)/dx_j = (1 / u^2) (-z for the first maximum, else e_j)
//   d(1 - p1 + p2)/dx_j = (1 / u^2) (-(z + e2) for the first maximum, else e_j (1 - e2), and e2 u more for the second)
#include "grid.h"
#include "planar.h"
#include "softmax.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

template <class T>
struct RowArgs {
  int64_t classes;
  bool margin;    // top_two_row: else least confidence
  const T* grad;  // the gradient that came for each pixel, of the entropy in nats, of 1 - p1 or of 1 - (p1 - p2)
  Vec<T>* memory;
};

template <class S, int K>
void entropy_row(const Planar<S>& x, const Planar<S>& out, const RowArgs<Compute<S>>& a) {
  using T = Compute<S>;
  const int64_t classes = K ? K : a.classes;
  ClassVectors<T, K> d(a.memory), e(a.memory + a.classes);
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    const Vec<T> top = load_classes<K>(x, classes, at, d.data());
    Vec<T> u = Vec<T>{}, u_lost = Vec<T>{}, s = Vec<T>{};
    for_each_group<K>(classes, [&](int64_t first, int64_t last) {
      Vec<T> part = Vec<T>{}, moment = Vec<T>{};
#pragma GCC unroll 8
      for (int64_t k = first; k < last; ++k) {
        d[k] = clamp_exponent<T>(d[k] - top);
        e[k] = exp_nonpositive<T>(d[k]);
        part += e[k];
        moment += e[k] * d[k];
      }
      add_compensated<T>(u, u_lost, part);
      s += moment;
    });
    const Vec<T> inverse = T(1) / u, mean = s * inverse, scale = (load(a.grad + at) + top * T(0)) * inverse;
#pragma GCC unroll 8
    for (int64_t k = 0; k < classes; ++k) out.store_class(k, at, scale * e[k] * (mean - d[k]));
  }
}

template <class S, int K>
void top_two_row(const Planar<S>& x, const Planar<S>& out, const RowArgs<Compute<S>>& a) {
  using T = Compute<S>;
  using I = IVecElement<T>;
  const int64_t classes = K ? K : a.classes;
  ClassVectors<T, K> e(a.memory);
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    // The first maximum, and the first maximum of the other classes: of two that meet the one behind.
    Vec<T> top = e[0] = x.load_class(0, at), second = splat<T>(-T(__builtin_inf()));
    IVec<T> first = IVec<T>{}, next = IVec<T>{} - I(1);
#pragma GCC unroll 8
    for (int64_t k = 1; k < classes; ++k) {
      const Vec<T> v = e[k] = x.load_class(k, at);
      const IVec<T> lead = v > top;
      const Vec<T> behind = lead ? top : v;
      const IVec<T> gains = lead | (behind > second);
      next = gains ? (lead ? first : IVec<T>{} + I(k)) : next;
      second = gains ? behind : second;
      first = lead ? IVec<T>{} + I(k) : first;
      top = lead ? v : top;
    }
    Vec<T> z = Vec<T>{};
    for_each_group<K>(classes, [&](int64_t begin, int64_t end) {
      Vec<T> part = Vec<T>{};
#pragma GCC unroll 8
      for (int64_t k = begin; k < end; ++k) {
        e[k] = exp_nonpositive<T>(e[k] - top);
        part = add_where<T>(first != IVec<T>{} + I(k), part, e[k]);
      }
      z += part;
    });
    Vec<T> e2 = Vec<T>{};
    if (a.margin) e2 = exp_nonpositive<T>(second - top);
    const Vec<T> u = z + T(1), scale = (load(a.grad + at) + top * T(0)) / (u * u);
    const Vec<T> of_first = -(z + e2), of_all = T(1) - e2, of_next = e2 * u;
#pragma GCC unroll 8
    for (int64_t k = 0; k < classes; ++k) {
      const Vec<T> other = add_where<T>(next == IVec<T>{} + I(k), e[k] * of_all, of_next);
      out.store_class(k, at, scale * (first == IVec<T>{} + I(k) ? of_first : other));
    }
  }
}

template <class S>
struct BackwardScratch {
  S *piece, *result;
  Vec<Compute<S>>* classes;  // two vectors per class
  size_t bytes;

  BackwardScratch(const EntropyBackwardParams& p, void* memory) {
    Scratch scratch(memory);
    piece = scratch.take<S>(piece_elements<S>(p.classes));
    result = scratch.take<S>(piece_elements<S>(p.classes));
    classes = scratch.take<Vec<Compute<S>>>(2 * p.classes);
    bytes = scratch.bytes();
  }
};

template <class S>
void backward(const EntropyBackwardParams& p, void* memory, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const Grid& g = p.grid;
  const Strides &st = p.logits_stride, &gs = p.grad_stride, &os = p.grad_logits_stride;
  const int64_t splits = strip_splits(g), width = g.size[2];
  const bool entropy = p.uncertainty == Uncertainty::entropy, margin = p.uncertainty == Uncertainty::margin;
  const double scale = entropy && p.normalize ? 1 / __builtin_log(double(p.classes))
                       : entropy || margin    ? 1.0
                                              : double(p.classes) / double(p.classes - 1);
  S* const logits = static_cast<S*>(const_cast<void*>(p.logits));
  S* const grad_logits = static_cast<S*>(p.grad_logits);
  const T* const grad = static_cast<const T*>(p.grad);
  T line[kChunk + kWidth<T>] = {};
  const BackwardScratch<S> scratch(p, memory);
  const auto row = with_classes<S>(p.classes, [&](auto k) {
    constexpr int K = decltype(k)::value;
    return entropy ? &entropy_row<S, K> : &top_two_row<S, K>;
  });

  for (int64_t index = begin; index < end; ++index) {
    const Item item(g, splits, index);
    for (int64_t x0 = 0; x0 < width; x0 += kChunk) {
      const int64_t count = width - x0 < kChunk ? width - x0 : kChunk;
      if (p.pooled) {
        const T* const g_row = grad + item.n * gs.n + item.gz * gs.d + item.gy * gs.h;
        const double pixels = double(extent(g, 0, item.gz)) * double(item.rows_y);
        spread_patches(g, x0, count, line, [&](int64_t gx) {
          return T(double(g_row[gx * gs.w]) * scale / (pixels * double(extent(g, 2, gx))));
        });
      }
      for (int64_t r = item.first; r < item.last; ++r) {
        const int64_t z = item.z(r), y = item.y(r);
        if (!p.pooled) {
          const T* const g_row = grad + item.n * gs.n + z * gs.d + y * gs.h + x0 * gs.w;
          for (int64_t i = 0; i < count; ++i) line[i] = g_row[i * gs.w] * T(scale);
        }
        S* const x = logits + item.n * st.n + z * st.d + y * st.h + x0 * st.w;
        S* const out = grad_logits + item.n * os.n + z * os.d + y * os.h + x0 * os.w;
        for_each_planar_pair(x, st.c, st.w, out, os.c, os.w, p.classes, count, scratch.piece, scratch.result,
                             [&](const Planar<S>& from, const Planar<S>& to, int64_t i) {
                               row(from, to, {p.classes, margin, line + i, scratch.classes});
                             });
      }
    }
  }
}

int64_t items(const EntropyBackwardParams& p) { return strip_items(p.grid, p.batch); }

size_t scratch_bytes(const EntropyBackwardParams& p) {
  return with_dtype(p.dtype, [&](auto s) { return BackwardScratch<typename decltype(s)::type>(p, nullptr).bytes; });
}

void run(const EntropyBackwardParams& p, const Memory& memory, int64_t begin, int64_t end) {
  with_dtype(p.dtype, [&](auto s) { backward<typename decltype(s)::type>(p, memory.scratch, begin, end); });
}

}  // namespace

const Stage<EntropyBackwardParams> entropy_backward = {items, run, scratch_bytes, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
