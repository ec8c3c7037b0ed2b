// Forward of the soft loss: the distance between two softmaxes, one pass over both.
//
//   mse: sum_k (p_k - q_k)^2 = sum_k (e_k - f_k U_x / U_y)^2 / U_x^2, e_k = e^(x_k - max x), f_k = e^(y_k - max y)
//   kl:  sum_k q_k (ln q_k - ln p_k) = sum_k f_k ((y_k - max y) - (x_k - max x)) / U_y + ln(U_x / U_y)
//
// Both are exactly 0 where the logits are the same, whatever products are fused with a sum. The logarithms of the
// probabilities are never taken, so that a class of tiny probability costs what it should and one that cannot be costs
// infinity; that of U_x / U_y is of 1 + t or 1 / (1 + t), t >= 0 from the sums without the maximum's own 1. Sums over
// pixels: as in the consistency loss, at most kFlushVectors vectors, then in double.
#include "soft_loss.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

constexpr int64_t kFlushVectors = 64;
constexpr int kSums = 2;  // the sum over the pixels, their number

template <int K, bool KL, class A>
void forward_row(const A& x, const A& y, int64_t n_classes, const IVecElement<typename A::T>* where,
                 Vec<typename A::T>& total, Vec<typename A::T>* memory) {
  using T = typename A::T;
  const int64_t classes = K ? K : n_classes;
  ClassVectors<T, K> e(memory), f(memory + n_classes);
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    IVec<T> counts;
    __builtin_memcpy(&counts, where + at, sizeof counts);
    if (at != i) counts &= lanes_from<T>(i - at);  // a row's last vector was moved back
    const Vec<T> x_top = load_classes<K>(x, classes, at, e.data()), y_top = load_classes<K>(y, classes, at, f.data());
    const SoftSums<T> sums = soft_exponentials<K, KL>(classes, x_top, y_top, e, f);
    Vec<T> distance = Vec<T>{};
    if constexpr (KL) {
      const Vec<T> x_sum = sums.x + T(1), y_sum = sums.y + T(1), x_scale = T(1) / x_sum, y_scale = T(1) / y_sum;
      const Vec<T> more = sums.x - sums.y;
      const IVec<T> less = more < T(0);
      const Vec<T> t = less ? -more * x_scale : more * y_scale, u = t + T(1);
      // As in log1p_nonnegative, 1 / u being at hand; NaN where a softmax is.
      const Vec<T> log = log_from_one<T>(u) + (t - (u - T(1))) * (less ? x_sum * y_scale : y_sum * x_scale);
      distance = max(Vec<T>{}, sums.moment * y_scale + (less ? -log : log));
    } else {
      const Vec<T> ratio = sums.x / sums.y, scale = T(1) / sums.x;
      for_each_group<K>(classes, [&](int64_t first, int64_t last) {
        Vec<T> part = Vec<T>{};
#pragma GCC unroll 8
        for (int64_t k = first; k < last; ++k) {
          const Vec<T> d = e[k] - f[k] * ratio;
          part += d * d;
        }
        distance += part;
      });
      distance *= scale * scale;
    }
    total = add_where<T>(counts, total, distance);
  }
}

template <class S>
void forward(const SoftLossParams& p, const Memory& memory, int64_t begin, int64_t end) {
  using T = Compute<S>;
  double* const partial = static_cast<double*>(memory.workspace);
  const SoftScratch<T> scratch(p, memory.scratch);
  __builtin_memset(partial + begin * kSums, 0, size_t((end - begin) * kSums) * sizeof(double));
  with_classes<S>(p.classes, [&](auto k) {
    constexpr int K = decltype(k)::value;
    Vec<T> total = Vec<T>{};
    int64_t vectors = 0, current = begin;
    const auto flush = [&] {
      partial[current * kSums] += sum(total);
      total = Vec<T>{};
      vectors = 0;
    };
    const auto begin_row = [&](int64_t item, int64_t pixels, int64_t counting) {
      if (item != current || vectors >= kFlushVectors) flush();
      current = item;
      vectors += ceil_div(pixels, kWidth<T>);
      partial[item * kSums + 1] += double(counting);
    };
    const SoftRows none{nullptr, p.dtype, p.logits_stride};
    for_each_soft_row<S>(p, none, begin, end, scratch, begin_row,
                         [&](const auto& x, const auto& y, const auto&, const IVecElement<T>* where) {
                           if (p.kl)
                             forward_row<K, true>(x, y, p.classes, where, total, scratch.classes);
                           else
                             forward_row<K, false>(x, y, p.classes, where, total, scratch.classes);
                         });
    if (begin < end) flush();
  });
}

int64_t items(const SoftLossForwardParams& f) { return soft_loss_items(f.loss); }

size_t scratch_bytes(const SoftLossForwardParams& f) {
  return with_soft_dtype(
      f.loss, [&](auto s) { return SoftScratch<Compute<typename decltype(s)::type>>(f.loss, nullptr).bytes; });
}

size_t workspace_bytes(const SoftLossForwardParams& f) { return size_t(items(f)) * kSums * sizeof(double); }

void run(const SoftLossForwardParams& f, const Memory& memory, int64_t begin, int64_t end) {
  with_soft_dtype(f.loss, [&](auto s) { forward<typename decltype(s)::type>(f.loss, memory, begin, end); });
}

void finish(const SoftLossForwardParams& f, const void* workspace) {
  const double* const partial = static_cast<const double*>(workspace);
  double total = 0, pixels = 0;
  for (int64_t i = 0; i < items(f); ++i) {
    total += partial[i * kSums];
    pixels += partial[i * kSums + 1];
  }
  f.sums[0] = total;
  f.sums[1] = pixels;
  const double mean = pixels > 0 ? total / pixels : 0;
  if (f.loss.dtype == Dtype::float64 || f.loss.target_dtype == Dtype::float64)
    *static_cast<double*>(f.mean) = mean;
  else
    *static_cast<float*>(f.mean) = float(mean);
}

}  // namespace

const Stage<SoftLossForwardParams> soft_loss_forward = {items, run, scratch_bytes, workspace_bytes, finish};

}  // namespace entmask::cpu::ENTMASK_ISA
