// Gradient of the loss with respect to the logits: the softmax is computed again from the logits, everything else comes
// from the forward's sums. The formula stands at LossBackwardParams.
#include "loss.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

// d(out)/d(ce) over the region's denominator.
template <class T>
struct Factors {
  T masked, visible;
};

// The two factors of a class's Dice gradient, q_k = alpha_k [label = k] + beta_k p_k.
template <class T>
struct DiceFactors {
  T *alpha, *beta;  // [K] each

  // dice: d(out)/d(D) / K, for the class sums I_0.., Q_0.., T_0.. A region without pixels has no gradient,
  // nor has a Dice that nothing depends on, which may be NaN.
  ENTMASK_INLINE void set(double dice, const double* sums, int64_t classes, double smooth, bool of_region) const {
    const bool none = dice == 0 || (of_region && region_pixels(sums, classes) == 0);
    for (int64_t k = 0; k < classes; ++k) {
      const double z = sums[classes + k] + sums[2 * classes + k] + smooth;
      alpha[k] = none ? 0 : T(-2 * dice / z);
      beta[k] = none ? 0 : T(2 * dice * (2 * sums[k] + smooth) / (z * z));
    }
  }
};

template <class T>
double read_grad(const void* g) {
  return g ? double(*static_cast<const T*>(g)) : 0.0;
}

template <class T>
Factors<T> factors(const LossBackwardParams& b) {
  const LossParams& p = b.loss;
  const double total = read_grad<T>(b.grad_total) * p.ce_weight;
  const double masked = total * p.mask_weight + read_grad<T>(b.grad_ce_masked);
  const double visible = total * p.visible_weight + read_grad<T>(b.grad_ce_visible);
  Factors<T> f;
  f.masked = b.sums[1] > 0 ? T(masked / (b.sums[1] + p.denominator_offset)) : T(0);
  f.visible = b.sums[3] > 0 ? T(visible / (b.sums[3] + p.denominator_offset)) : T(0);
  return f;
}

template <class S, int K, int Regions>
void backward_row(const Planar<S>& x, const Planar<S>& out, const LossParams& p, const Factors<Compute<S>>& f,
                  const DiceFactors<Compute<S>> (&dice)[2], const IVecElement<Compute<S>>* labels,
                  const IVecElement<Compute<S>>* masked, Vec<Compute<S>>* memory) {
  using T = Compute<S>;
  using I = IVecElement<T>;
  const int64_t classes = K ? K : p.classes;
  ClassVectors<T, K> q(memory);
  // Copies: a store to out could change what a reference refers to. With one Dice it is the first.
  const DiceFactors<T> dice_masked = dice[0], dice_visible = dice[1];
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    IVec<T> label;
    __builtin_memcpy(&label, labels + at, sizeof label);
    const IVec<T> valid = label >= 0;
    const Vec<T> top = load_classes<K>(x, classes, at, q.data());
    Vec<T> u = Vec<T>{}, u_lost = Vec<T>{}, w = splat<T>(1);
    for_each_group<K>(classes, [&](int64_t first, int64_t last) {
      Vec<T> part = Vec<T>{};
#pragma GCC unroll 8
      for (int64_t k = first; k < last; ++k) {
        q[k] = exp_nonpositive<T>(q[k] - top);
        part += q[k];
        if (p.class_weight) w = label == I(k) ? splat<T>(weight_of<T>(p, k)) : w;
      }
      add_compensated<T>(u, u_lost, part);
    });
    const Vec<T> inverse = T(1) / u;
    const IVec<T> inside = load_mask<T>(masked, at);
    const Vec<T> ce = w * (inside ? splat<T>(f.masked) : splat<T>(f.visible));
    const auto of_region = [&](const T* in_mask, const T* outside, int64_t k) {
      if constexpr (Regions == 1)
        return in_mask[k];
      else
        return inside ? splat<T>(in_mask[k]) : splat<T>(outside[k]);
    };
    const auto alpha = [&](int64_t k) { return of_region(dice_masked.alpha, dice_visible.alpha, k); };
    const auto beta = [&](int64_t k) { return of_region(dice_masked.beta, dice_visible.beta, k); };
    // With a = alpha_label: dot = sum_k beta_k q_k^2 + a q_label, and the gradient of class k is
    //   q_k (ce - dot + beta_k q_k) + [label = k] (a q_label - ce)
    Vec<T> dot = Vec<T>{}, own = Vec<T>{};
    for_each_group<K>(classes, [&](int64_t first, int64_t last) {
      Vec<T> part = Vec<T>{};
#pragma GCC unroll 8
      for (int64_t k = first; k < last; ++k) {
        q[k] = keep_where<T>(valid, q[k] * inverse);  // 0 at an ignored pixel, and with it the gradient
        part += q[k] * (q[k] * beta(k));
        own = label == I(k) ? q[k] * alpha(k) : own;
      }
      dot += part;
    });
    const Vec<T> common = ce - (dot + own), at_label = own - ce;
#pragma GCC unroll 8
    for (int64_t k = 0; k < classes; ++k) {
      const Vec<T> g = q[k] * (common + q[k] * beta(k));
      out.store_class(k, at, add_where<T>(label == I(k), g, at_label));
    }
  }
}

template <class S>
struct BackwardScratch {
  S *piece, *result;
  Vec<Compute<S>>* classes;  // one vector per class
  DiceFactors<Compute<S>> dice[2];
  size_t bytes;

  BackwardScratch(const LossParams& p, void* memory) {
    Scratch scratch(memory);
    piece = scratch.take<S>(piece_elements<S>(p.classes));
    result = scratch.take<S>(piece_elements<S>(p.classes));
    classes = scratch.take<Vec<Compute<S>>>(p.classes);
    for (DiceFactors<Compute<S>>& of : dice) {
      of.alpha = scratch.take<Compute<S>>(p.classes);
      of.beta = scratch.take<Compute<S>>(p.classes);
    }
    bytes = scratch.bytes();
  }
};

template <class S>
void backward(const LossBackwardParams& b, void* memory, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const LossParams& p = b.loss;
  const Strides &st = p.logits_stride, &os = b.grad_logits_stride;
  const Factors<T> f = factors<T>(b);
  const BackwardScratch<S> scratch(p, memory);
  const double dice = (read_grad<T>(b.grad_total) * p.dice_weight + read_grad<T>(b.grad_dice)) / double(p.classes);
  for (int r = 0; r < (p.dice_each ? 2 : 1); ++r) {
    const double weight = !p.dice_each ? 1 : r == 0 ? p.mask_weight : p.visible_weight;
    scratch.dice[r].set(dice * weight, b.sums + kHead + 3 * p.classes * r, p.classes, p.smooth, p.dice_each);
  }
  with_regions<S>(p, [&](auto k, auto regions) {
    constexpr int K = decltype(k)::value, Regions = decltype(regions)::value;
    for_each_piece<S>(p, begin, end, [&](const LossPiece<S>& piece, int64_t) {
      S* const out =
          static_cast<S*>(b.grad_logits) + piece.n * os.n + piece.z * os.d + piece.y * os.h + piece.x0 * os.w;
      for_each_planar_pair(piece.x, st.c, st.w, out, os.c, os.w, p.classes, piece.count, scratch.piece, scratch.result,
                           [&](const Planar<S>& x, const Planar<S>& to, int64_t i) {
                             backward_row<S, K, Regions>(x, to, p, f, scratch.dice, piece.labels + i, piece.masked + i,
                                                         scratch.classes);
                           });
    });
  });
}

int64_t items(const LossBackwardParams& b) { return loss_items(b.loss); }

size_t scratch_bytes(const LossBackwardParams& b) {
  return with_dtype(b.loss.dtype,
                    [&](auto s) { return BackwardScratch<typename decltype(s)::type>(b.loss, nullptr).bytes; });
}

void run(const LossBackwardParams& b, const Memory& memory, int64_t begin, int64_t end) {
  with_dtype(b.loss.dtype, [&](auto s) { backward<typename decltype(s)::type>(b, memory.scratch, begin, end); });
}

}  // namespace

const Stage<LossBackwardParams> loss_backward = {items, run, scratch_bytes, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
