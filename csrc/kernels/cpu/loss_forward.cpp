// Forward of the region-weighted cross entropy and soft Dice: one pass over the logits, no one-hot, no full-size mask.
//
//   l = -log softmax(x)[label] = ln(1 + z) - d_label,  d_k = x_k - m,  z = (e^d_label - 1) + sum_{k != label} e^d_k
//
// Where the label is the maximum its e^d is exactly 1 and z holds no 1, so that the loss of a sure and right pixel is
// accurate; where it is not, the loss is at least ln 2.
//
// Every item adds up its pixels in the compute dtype for at most kFlushVectors vectors, then in double; items are added
// in order at the end. A class is read once and its e^d kept, in registers where the number of classes is a constant,
// else in L1: planes are often a power of two of bytes apart and push each other out of a cache.
#include "loss.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

constexpr int64_t kFlushVectors = 64;

template <class T, int K>
struct Sums {
  Vec<T> head[kHead];
  ClassVectors<T, K> intersection, square, count;

  ENTMASK_INLINE Sums(Vec<T>* memory, int64_t classes)
      : intersection(memory), square(memory + classes), count(memory + 2 * classes) {
    clear(classes);
  }

  ENTMASK_INLINE void clear(int64_t classes) {
    for (int i = 0; i < kHead; ++i) head[i] = Vec<T>{};
    for (int64_t k = 0; k < classes; ++k) intersection[k] = square[k] = count[k] = Vec<T>{};
  }
};

template <class T, int K>
void flush(Sums<T, K>& s, int64_t classes, double* out) {
  for (int i = 0; i < kHead; ++i) out[i] += sum(s.head[i]);
  for (int64_t k = 0; k < classes; ++k) {
    out[kHead + k] += sum(s.intersection[k]);
    out[kHead + classes + k] += sum(s.square[k]);
    out[kHead + 2 * classes + k] += sum(s.count[k]);
  }
  s.clear(classes);
}

// w l and w of a vector of pixels into the sums of their regions. A pixel of weight 0 adds 0, whatever its l.
template <class T>
ENTMASK_INLINE void add_region(Vec<T>* head, IVec<T> masked, IVec<T> valid, Vec<T> w, Vec<T> l) {
  const IVec<T> counts = valid & (w > T(0)), inside = counts & masked, outside = counts & ~masked;
  const Vec<T> wl = w * l;
  head[0] = add_where<T>(inside, head[0], wl);
  head[1] = add_where<T>(inside, head[1], w);
  head[2] = add_where<T>(outside, head[2], wl);
  head[3] = add_where<T>(outside, head[3], w);
}

template <class S, int K>
void forward_row(const Planar<S>& x, const LossParams& p, const IVecElement<Compute<S>>* labels,
                 const IVecElement<Compute<S>>* masked, Sums<Compute<S>, K>& sums, Vec<Compute<S>>* memory) {
  using T = Compute<S>;
  using I = IVecElement<T>;
  const int64_t classes = K ? K : p.classes;
  ClassVectors<T, K> e(memory);
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    const IVec<T> label = labels_at<T>(labels, at, i), valid = label >= 0;
    const Vec<T> top = load_classes<K>(x, classes, at, e.data());
    Vec<T> others = Vec<T>{}, own_d = Vec<T>{}, own_e = Vec<T>{}, w = splat<T>(1);
    for_each_group<K>(classes, [&](int64_t first, int64_t last) {
      Vec<T> part = Vec<T>{};
#pragma GCC unroll 8
      for (int64_t k = first; k < last; ++k) {
        const Vec<T> d = e[k] - top;
        e[k] = exp_nonpositive<T>(d);
        const IVec<T> is_label = label == I(k);
        part = add_where<T>(~is_label, part, e[k]);
        own_d = is_label ? d : own_d;
        own_e = is_label ? e[k] : own_e;
        if (p.class_weight) w = is_label ? splat<T>(weight_of<T>(p, k)) : w;
      }
      others += part;
    });
    const Vec<T> z = (own_e - T(1)) + others, u = z + T(1), inverse = T(1) / u;
    const Vec<T> l = log_from_one<T>(u) + (z - (u - T(1))) * inverse - own_d;
    add_region<T>(sums.head, load_mask<T>(masked, at), valid, w, l);
    const Vec<T> own_q = own_e * inverse;
#pragma GCC unroll 8
    for (int64_t k = 0; k < classes; ++k) {
      const IVec<T> is_label = label == I(k);
      const Vec<T> q = keep_where<T>(valid, e[k] * inverse);
      sums.square[k] += q * q;
      sums.intersection[k] = add_where<T>(is_label, sums.intersection[k], own_q);
      sums.count[k] = add_where<T>(is_label, sums.count[k], splat<T>(1));
    }
  }
}

template <class S>
struct ForwardScratch {
  S* piece;
  Vec<Compute<S>>* classes;  // four vectors per class
  size_t bytes;

  ForwardScratch(const LossParams& p, void* memory) {
    Scratch scratch(memory);
    piece = scratch.take<S>(piece_elements<S>(p.classes));
    classes = scratch.take<Vec<Compute<S>>>(4 * p.classes);
    bytes = scratch.bytes();
  }
};

template <class S>
void forward(const LossParams& p, const Memory& memory, int64_t begin, int64_t end) {
  using T = Compute<S>;
  double* const partial = static_cast<double*>(memory.workspace);
  const ForwardScratch<S> scratch(p, memory.scratch);
  const int64_t n_sums = kHead + 3 * p.classes, w_stride = p.logits_stride.w, k_stride = p.logits_stride.c;
  __builtin_memset(partial + begin * n_sums, 0, size_t((end - begin) * n_sums) * sizeof(double));
  with_classes<S>(p.classes, [&](auto k) {
    constexpr int K = decltype(k)::value;
    Sums<T, K> sums(scratch.classes + p.classes, p.classes);
    int64_t vectors = 0, current = begin;
    for_each_piece<S>(p, begin, end, [&](const LossPiece<S>& piece, int64_t index) {
      if (index != current || vectors >= kFlushVectors) {
        flush(sums, p.classes, partial + current * n_sums);
        vectors = 0;
        current = index;
      }
      for_each_planar(piece.x, k_stride, w_stride, p.classes, piece.count, scratch.piece,
                      [&](const Planar<S>& x, int64_t i, int64_t) {
                        forward_row<S, K>(x, p, piece.labels + i, piece.masked + i, sums, scratch.classes);
                      });
      vectors += ceil_div(piece.count, kWidth<T>);
    });
    if (begin < end) flush(sums, p.classes, partial + current * n_sums);
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

int64_t items(const LossForwardParams& f) { return loss_items(f.loss); }

size_t scratch_bytes(const LossForwardParams& f) {
  return with_dtype(f.loss.dtype,
                    [&](auto s) { return ForwardScratch<typename decltype(s)::type>(f.loss, nullptr).bytes; });
}

size_t workspace_bytes(const LossForwardParams& f) {
  return size_t(items(f)) * size_t(kHead + 3 * f.loss.classes) * sizeof(double);
}

void run(const LossForwardParams& f, const Memory& memory, int64_t begin, int64_t end) {
  with_dtype(f.loss.dtype, [&](auto s) { forward<typename decltype(s)::type>(f.loss, memory, begin, end); });
}

void finish(const LossForwardParams& f, const void* workspace) {
  const int64_t n_items = items(f), n_sums = kHead + 3 * f.loss.classes;
  const double* const partial = static_cast<const double*>(workspace);
  for (int64_t j = 0; j < n_sums; ++j) f.sums[j] = 0;
  for (int64_t i = 0; i < n_items; ++i)
    for (int64_t j = 0; j < n_sums; ++j) f.sums[j] += partial[i * n_sums + j];
  if (f.loss.dtype == Dtype::float64)
    write_outputs<double>(f);
  else
    write_outputs<float>(f);
}

}  // namespace

const Stage<LossForwardParams> loss_forward = {items, run, scratch_bytes, workspace_bytes, finish};

}  // namespace entmask::cpu::ENTMASK_ISA
