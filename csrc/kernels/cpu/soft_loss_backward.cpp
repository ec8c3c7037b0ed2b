// Gradient of the soft loss with respect to the logits: both softmaxes are computed again. The formula stands at
// SoftLossBackwardParams.
#include "soft_loss.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

template <int K, bool KL, class A>
void backward_row(const A& x, const A& y, const A& out, int64_t n_classes, typename A::T grad,
                  const IVecElement<typename A::T>* where, Vec<typename A::T>* memory) {
  using T = typename A::T;
  const int64_t classes = K ? K : n_classes;
  ClassVectors<T, K> p(memory), d(memory + n_classes);
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    IVec<T> counts;
    __builtin_memcpy(&counts, where + at, sizeof counts);
    const Vec<T> x_top = load_classes<K>(x, classes, at, p.data()), y_top = load_classes<K>(y, classes, at, d.data());
    const SoftSums<T> sums = soft_exponentials<K, false>(classes, x_top, y_top, p, d);
    // p_k - q_k = (e_k - f_k U_x / U_y) / U_x, exactly 0 where the logits are the same.
    const Vec<T> ratio = sums.x / sums.y, scale = T(1) / sums.x;
    if constexpr (KL) {
#pragma GCC unroll 8
      for (int64_t k = 0; k < classes; ++k)
        out.store_class(k, at, keep_where<T>(counts, (grad * scale) * (p[k] - d[k] * ratio)));
    } else {
      Vec<T> dot = Vec<T>{};
      for_each_group<K>(classes, [&](int64_t first, int64_t last) {
        Vec<T> part = Vec<T>{};
#pragma GCC unroll 8
        for (int64_t k = first; k < last; ++k) {
          d[k] = (p[k] - d[k] * ratio) * scale;
          p[k] = p[k] * scale;
          part += p[k] * d[k];
        }
        dot += part;
      });
#pragma GCC unroll 8
      for (int64_t k = 0; k < classes; ++k)
        out.store_class(k, at, keep_where<T>(counts, (2 * grad) * p[k] * (d[k] - dot)));
    }
  }
}

template <class S>
void backward(const SoftLossBackwardParams& b, const Memory& memory, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const SoftLossParams& p = b.loss;
  const SoftScratch<T> scratch(p, memory.scratch);
  const T grad = b.sums[1] > 0 ? T(double(*static_cast<const T*>(b.grad)) / b.sums[1]) : T(0);
  const SoftRows out{b.grad_logits, p.dtype, b.grad_logits_stride};
  with_classes<S>(p.classes, [&](auto k) {
    constexpr int K = decltype(k)::value;
    for_each_soft_row<S>(
        p, out, begin, end, scratch, [](int64_t, int64_t, int64_t) {},
        [&](const auto& x, const auto& y, const auto& to, const IVecElement<T>* where) {
          if (p.kl)
            backward_row<K, true>(x, y, to, p.classes, grad, where, scratch.classes);
          else
            backward_row<K, false>(x, y, to, p.classes, grad, where, scratch.classes);
        });
  });
}

int64_t items(const SoftLossBackwardParams& b) { return soft_loss_items(b.loss); }

size_t scratch_bytes(const SoftLossBackwardParams& b) {
  return with_soft_dtype(
      b.loss, [&](auto s) { return SoftScratch<Compute<typename decltype(s)::type>>(b.loss, nullptr).bytes; });
}

void run(const SoftLossBackwardParams& b, const Memory& memory, int64_t begin, int64_t end) {
  with_soft_dtype(b.loss, [&](auto s) { backward<typename decltype(s)::type>(b, memory, begin, end); });
}

}  // namespace

const Stage<SoftLossBackwardParams> soft_loss_backward = {items, run, scratch_bytes, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
