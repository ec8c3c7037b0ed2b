// Forward of the region-weighted cross entropy and soft Dice: one pass over the logits, no one-hot, no full-size mask.
//
//   l = -log softmax(x)[label] = ln(1 + z) - (x_label - m), z as in entropy.h: no 1 from the maximum, so that the loss
//   of a sure and right pixel is accurate
//
// Every item adds up its pixels in the compute dtype for at most kFlushVectors vectors, then in double; items are added
// in order at the end. Up to 8 classes stay in registers; with more, the classes are read again for their Dice sums,
// from the cache.
#include "loss.h"
#include "tables.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

constexpr int64_t kFlushVectors = 64;

// sums of one item: masked w l, masked w, visible w l, visible w, I_0.., Q_0.., T_0..
constexpr int kHead = 4;

template <class T, int K>
struct Sums {
  Vec<T> head[kHead], intersection[K], square[K], count[K];
};

template <class T, int K>
void flush(Sums<T, K>& s, double* out) {
  for (int i = 0; i < kHead; ++i) out[i] += sum(s.head[i]);
  for (int k = 0; k < K; ++k) {
    out[kHead + k] += sum(s.intersection[k]);
    out[kHead + K + k] += sum(s.square[k]);
    out[kHead + 2 * K + k] += sum(s.count[k]);
  }
  s = Sums<T, K>{};
}

// w l and w of a vector of pixels into the sums of their regions. A pixel of weight 0 adds 0, whatever its l.
template <class T>
ENTMASK_INLINE void add_region(Vec<T>* head, IVec<T> masked, IVec<T> valid, Vec<T> w, Vec<T> l) {
  const IVec<T> counts = valid & (w > T(0));
  const Vec<T> wl = where<T>(counts, w * l), weight = where<T>(counts, w);
  head[0] += where<T>(masked, wl);
  head[1] += where<T>(masked, weight);
  head[2] += where<T>(~masked, wl);
  head[3] += where<T>(~masked, weight);
}

template <class S, int K>
void forward_row(const Planar<S>& x, const LossParams& p, const IVecElement<Compute<S>>* labels,
                 const IVecElement<Compute<S>>* masked, Sums<Compute<S>, K>& sums) {
  using T = Compute<S>;
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    const IVec<T> label = labels_at<T>(labels, at, i), valid = label >= 0;
    Vec<T> d[K], e[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) d[k] = x.load_class(k, at);
    Vec<T> top = d[0];
#pragma GCC unroll 8
    for (int k = 1; k < K; ++k) top = max(d[k], top);
    // z = sum of e over the classes below the maximum, and a 1 for each further class that reaches it.
    Vec<T> z = Vec<T>{}, ties = splat<T>(-1), own = Vec<T>{}, w = splat<T>(1);
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      d[k] -= top;
      e[k] = exp_nonpositive<T>(clamp_exponent<T>(d[k]));
      const IVec<T> is_top = d[k] >= T(0), is_label = label == k;
      z += where<T>(~is_top, e[k]);
      ties += where<T>(is_top, splat<T>(1));
      own = is_label ? d[k] : own;
      if (p.class_weight) w = is_label ? splat<T>(weight_of<T>(p, k)) : w;
    }
    z += ties;
    add_region<T>(sums.head, load_mask<T>(masked, at), valid, w, log1p_nonnegative<T>(z) - own);
    const Vec<T> inverse = T(1) / (z + T(1));
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const IVec<T> is_label = label == k;
      const Vec<T> q = e[k] * inverse;
      sums.intersection[k] += where<T>(is_label, q);
      sums.square[k] += where<T>(valid, q * q);
      sums.count[k] += where<T>(is_label, splat<T>(1));
    }
  }
}

// More than 8 classes: the softmax of each pixel, then each class over the piece again.
template <class S>
void forward_row_many(const Planar<S>& x, const LossParams& p, const IVecElement<Compute<S>>* labels,
                      const IVecElement<Compute<S>>* masked, double* out) {
  using T = Compute<S>;
  const int64_t K = p.classes;
  T top[kChunk + kWidth<T>], inverse[kChunk + kWidth<T>], own[kChunk + kWidth<T>], w[kChunk + kWidth<T>];
  for (int64_t i = 0; i < x.n; ++i) {
    const int64_t k = labels[i] < 0 ? 0 : labels[i];
    own[i] = scalar<S>(x.x[k * x.k_stride + i]);
    w[i] = weight_of<T>(p, k);
  }
  Vec<T> head[kHead] = {};
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    const IVec<T> label = labels_at<T>(labels, at, i), valid = label >= 0;
    const Softmax<T> s = softmax<false, 0>(x, K, at);
    const Vec<T> base = s.max + (s.max - s.max);  // not finite: NaN, as it should be
    const Vec<T> d = load(own + at) - base, inv = T(1) / (s.z + T(1));
    store(top + at, base);
    store(inverse + at, inv);
    add_region<T>(head, load_mask<T>(masked, at), valid, load(w + at), log1p_nonnegative<T>(s.z) - d);
    // `own` becomes the label's probability, once: a vector moved back holds some already.
    const Vec<T> q = exp_nonpositive<T>(clamp_exponent<T>(d)) * inv;
    if (at == i) {
      store(own + at, q);
    } else {
      for (int j = int(i - at); j < kWidth<T>; ++j) own[at + j] = q[j];
    }
  }
  for (int j = 0; j < kHead; ++j) out[j] += sum(head[j]);
  for (int64_t i = 0; i < x.n; ++i) {
    if (labels[i] < 0) continue;
    out[kHead + labels[i]] += double(own[i]);
    out[kHead + 2 * K + labels[i]] += 1;
  }
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> square = Vec<T>{};
    for (int64_t i = 0; i < x.n; i += kWidth<T>) {
      const int64_t at = vector_start<T>(i, x.n);
      const Vec<T> d = clamp_exponent<T>(x.load_class(k, at) - load(top + at));
      const Vec<T> q = exp_nonpositive<T>(d) * load(inverse + at);
      square += where<T>(labels_at<T>(labels, at, i) >= 0, q * q);
    }
    out[kHead + K + k] += sum(square);
  }
}

template <class S>
void forward(const LossParams& p, double* partial, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const int64_t n_sums = kHead + 3 * p.classes, w_stride = p.logits_stride.w, k_stride = p.logits_stride.c;
  __builtin_memset(partial + begin * n_sums, 0, size_t((end - begin) * n_sums) * sizeof(double));
  with_classes<S>(p.classes, [&](auto k) {
    constexpr int K = decltype(k)::value;
    Sums<T, K ? K : 1> sums{};
    int64_t vectors = 0, current = begin;
    for_each_piece<S>(p, begin, end, [&](const LossPiece<S>& piece, int64_t index) {
      if (K && (index != current || vectors >= kFlushVectors)) {
        flush(sums, partial + current * n_sums);
        vectors = 0;
        current = index;
      }
      for_each_planar(piece.x, k_stride, w_stride, p.classes, piece.count, [&](const Planar<S>& x, int64_t i, int64_t) {
        if constexpr (K > 0)
          forward_row<S, K>(x, p, piece.labels + i, piece.masked + i, sums);
        else
          forward_row_many<S>(x, p, piece.labels + i, piece.masked + i, partial + index * n_sums);
      });
      vectors += ceil_div(piece.count, kWidth<T>);
    });
    if (K && begin < end) flush(sums, partial + current * n_sums);
  });
}

template <class T>
void write_outputs(const LossForwardParams& f) {
  const LossParams& p = f.loss;
  const double* const s = f.sums;
  const int64_t K = p.classes;
  const double masked = s[1] > 0 ? s[0] / (s[1] + p.denominator_offset) : 0;
  const double visible = s[3] > 0 ? s[2] / (s[3] + p.denominator_offset) : 0;
  double dice = 0;
  for (int64_t k = 0; k < K; ++k)
    dice += 1 - (2 * s[kHead + k] + p.smooth) / (s[kHead + K + k] + s[kHead + 2 * K + k] + p.smooth);
  dice /= double(K);
  *static_cast<T*>(f.ce_masked) = T(masked);
  *static_cast<T*>(f.ce_visible) = T(visible);
  *static_cast<T*>(f.dice) = T(dice);
  *static_cast<T*>(f.total) = T(p.ce_weight * (p.mask_weight * masked + visible) + p.dice_weight * dice);
}

}  // namespace

int64_t loss_items(const LossParams& p) { return strip_items(p.grid, p.batch); }

size_t loss_forward_workspace(const LossParams& p) {
  return size_t(loss_items(p)) * size_t(kHead + 3 * p.classes) * sizeof(double);
}

void loss_forward(const LossForwardParams& f, void* workspace, int64_t begin, int64_t end) {
  with_dtype(f.loss.dtype,
             [&](auto s) { forward<typename decltype(s)::type>(f.loss, static_cast<double*>(workspace), begin, end); });
}

void loss_forward_finish(const LossForwardParams& f, const void* workspace) {
  const int64_t items = loss_items(f.loss), n_sums = kHead + 3 * f.loss.classes;
  const double* const partial = static_cast<const double*>(workspace);
  for (int64_t j = 0; j < n_sums; ++j) f.sums[j] = 0;
  for (int64_t i = 0; i < items; ++i)
    for (int64_t j = 0; j < n_sums; ++j) f.sums[j] += partial[i * n_sums + j];
  if (f.loss.dtype == Dtype::float64)
    write_outputs<double>(f);
  else
    write_outputs<float>(f);
}

}  // namespace entmask::cpu::ENTMASK_ISA
