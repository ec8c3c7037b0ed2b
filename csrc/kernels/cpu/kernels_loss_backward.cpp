// Gradient of the loss with respect to the logits: the softmax is computed again from the logits, everything else comes
// from the forward's sums. The formula stands at LossBackwardParams.
#include "loss.h"
#include "tables.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

constexpr int kHead = 4;
constexpr int kKept = 64;      // classes whose probabilities are kept between the two passes over a vector of pixels
constexpr int kFactors = 512;  // classes whose Dice factors are kept for all pixels

// d(out)/d(ce) over the region's denominator, and the two factors of a class's Dice gradient:
//   q_k = alpha_k [label = k] + beta_k p_k
template <class T>
struct Factors {
  T masked, visible;
  double dice;
  const double* sums;
  int64_t classes;
  double smooth;

  ENTMASK_INLINE double denominator(int64_t k) const {
    return sums[kHead + classes + k] + sums[kHead + 2 * classes + k] + smooth;
  }
  ENTMASK_INLINE T alpha(int64_t k) const { return T(-2 * dice / denominator(k)); }
  ENTMASK_INLINE T beta(int64_t k) const {
    const double z = denominator(k);
    return T(2 * dice * (2 * sums[kHead + k] + smooth) / (z * z));
  }
};

template <class T>
Factors<T> factors(const LossBackwardParams& b) {
  const LossParams& p = b.loss;
  auto read = [](const void* g) { return g ? double(*static_cast<const T*>(g)) : 0.0; };
  const double total = read(b.grad_total);
  const double masked = total * p.ce_weight * p.mask_weight + read(b.grad_ce_masked);
  const double visible = total * p.ce_weight + read(b.grad_ce_visible);
  Factors<T> f;
  f.masked = b.sums[1] > 0 ? T(masked / (b.sums[1] + p.denominator_offset)) : T(0);
  f.visible = b.sums[3] > 0 ? T(visible / (b.sums[3] + p.denominator_offset)) : T(0);
  f.dice = (total * p.dice_weight + read(b.grad_dice)) / double(p.classes);
  f.sums = b.sums;
  f.classes = p.classes;
  f.smooth = p.smooth;
  return f;
}

template <class S, int K>
void backward_row(const Planar<S>& x, const Planar<S>& out, const LossParams& p, const Factors<Compute<S>>& f,
                  const Compute<S>* alpha, const Compute<S>* beta, const IVecElement<Compute<S>>* labels,
                  const IVecElement<Compute<S>>* masked) {
  using T = Compute<S>;
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    IVec<T> label;
    __builtin_memcpy(&label, labels + at, sizeof label);
    const IVec<T> valid = label >= 0;
    Vec<T> e[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) e[k] = x.load_class(k, at);
    Vec<T> top = e[0], u = Vec<T>{}, w = splat<T>(1);
#pragma GCC unroll 8
    for (int k = 1; k < K; ++k) top = max(e[k], top);
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      e[k] = exp_nonpositive<T>(clamp_exponent<T>(e[k] - top));
      u += e[k];
      if (p.class_weight) w = label == k ? splat<T>(weight_of<T>(p, k)) : w;
    }
    const Vec<T> inverse = T(1) / u;
    const Vec<T> ce = w * (load_mask<T>(masked, at) ? splat<T>(f.masked) : splat<T>(f.visible));
    Vec<T> dot = Vec<T>{};
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      e[k] *= inverse;
      dot += e[k] * (e[k] * beta[k] + where<T>(label == k, splat<T>(alpha[k])));
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const IVec<T> is_label = label == k;
      const Vec<T> q = e[k] * beta[k] + where<T>(is_label, splat<T>(alpha[k]));
      const Vec<T> g = ce * (e[k] - where<T>(is_label, splat<T>(1))) + e[k] * (q - dot);
      out.store_class(k, at, where<T>(valid, g));
    }
  }
}

template <class S>
void backward_row_many(const Planar<S>& x, const Planar<S>& out, const LossParams& p, const Factors<Compute<S>>& f,
                       const Compute<S>* alphas, const Compute<S>* betas, const IVecElement<Compute<S>>* labels,
                       const IVecElement<Compute<S>>* masked) {
  using T = Compute<S>;
  using I = IVecElement<T>;
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    IVec<T> label;
    __builtin_memcpy(&label, labels + at, sizeof label);
    const IVec<T> valid = label >= 0;
    Vec<T> w, alpha;
    for (int j = 0; j < kWidth<T>; ++j) {
      const int64_t k = label[j] < 0 ? 0 : label[j];
      w[j] = weight_of<T>(p, k);
      alpha[j] = k < kFactors ? alphas[k] : f.alpha(k);
    }
    const Softmax<T> s = softmax<false, 0>(x, p.classes, at);
    const Vec<T> top = s.max + (s.max - s.max), inverse = T(1) / (s.z + T(1));
    const Vec<T> ce = w * (load_mask<T>(masked, at) ? splat<T>(f.masked) : splat<T>(f.visible));
    Vec<T> kept[kKept], dot = Vec<T>{};
    auto probability = [&](int64_t k) {
      return exp_nonpositive<T>(clamp_exponent<T>(x.load_class(k, at) - top)) * inverse;
    };
    auto beta = [&](int64_t k) { return k < kFactors ? betas[k] : f.beta(k); };
    for (int64_t k = 0; k < p.classes; ++k) {
      const Vec<T> q = probability(k);
      if (k < kKept) kept[k] = q;
      dot += q * (q * beta(k) + where<T>(label == I(k), alpha));
    }
    for (int64_t k = 0; k < p.classes; ++k) {
      const IVec<T> is_label = label == I(k);
      const Vec<T> q = k < kKept ? kept[k] : probability(k);
      const Vec<T> g = ce * (q - where<T>(is_label, splat<T>(1))) + q * (q * beta(k) + where<T>(is_label, alpha) - dot);
      out.store_class(k, at, where<T>(valid, g));
    }
  }
}

template <class S>
void backward(const LossBackwardParams& b, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const LossParams& p = b.loss;
  const Strides &st = p.logits_stride, &os = b.grad_logits_stride;
  const Factors<T> f = factors<T>(b);
  with_classes<S>(p.classes, [&](auto k) {
    constexpr int K = decltype(k)::value;
    T alpha[K ? K : kFactors], beta[K ? K : kFactors];
    for (int64_t j = 0; j < p.classes && j < (K ? K : kFactors); ++j) alpha[j] = f.alpha(j), beta[j] = f.beta(j);
    for_each_piece<S>(p, begin, end, [&](const LossPiece<S>& piece, int64_t) {
      S* const out =
          static_cast<S*>(b.grad_logits) + piece.n * os.n + piece.z * os.d + piece.y * os.h + piece.x0 * os.w;
      for_each_planar_pair(piece.x, st.c, st.w, out, os.c, os.w, p.classes, piece.count,
                           [&](const Planar<S>& x, const Planar<S>& to, int64_t i) {
                             if constexpr (K > 0)
                               backward_row<S, K>(x, to, p, f, alpha, beta, piece.labels + i, piece.masked + i);
                             else
                               backward_row_many<S>(x, to, p, f, alpha, beta, piece.labels + i, piece.masked + i);
                           });
    });
  });
}

}  // namespace

void loss_backward(const LossBackwardParams& b, int64_t begin, int64_t end) {
  with_dtype(b.loss.dtype, [&](auto s) { backward<typename decltype(s)::type>(b, begin, end); });
}

}  // namespace entmask::cpu::ENTMASK_ISA
