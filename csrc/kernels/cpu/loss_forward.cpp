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
struct ClassSums {
  ClassVectors<T, K> intersection, square, count;

  ENTMASK_INLINE ClassSums(Vec<T>* memory, int64_t classes)
      : intersection(memory), square(memory + classes), count(memory + 2 * classes) {}
};

template <class T, int K, int Regions>
struct Sums {
  Vec<T> head[kHead];
  ClassSums<T, K> of[2];  // of all pixels; or of the masked and of the visible ones

  ENTMASK_INLINE Sums(Vec<T>* memory, int64_t classes) : of{{memory, classes}, {memory + 3 * classes, classes}} {
    clear(classes);
  }

  ENTMASK_INLINE void clear(int64_t classes) {
    for (int i = 0; i < kHead; ++i) head[i] = Vec<T>{};
    for (int r = 0; r < Regions; ++r)
      for (int64_t k = 0; k < classes; ++k) of[r].intersection[k] = of[r].square[k] = of[r].count[k] = Vec<T>{};
  }
};

template <class T, int K, int Regions>
void flush(Sums<T, K, Regions>& s, int64_t classes, double* out) {
  for (int i = 0; i < kHead; ++i) out[i] += sum(s.head[i]);
  for (int r = 0; r < Regions; ++r) {
    double* const of_class = out + kHead + 3 * classes * r;
    for (int64_t k = 0; k < classes; ++k) {
      of_class[k] += sum(s.of[r].intersection[k]);
      of_class[classes + k] += sum(s.of[r].square[k]);
      of_class[2 * classes + k] += sum(s.of[r].count[k]);
    }
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

template <class S, int K, int Regions>
void forward_row(const Planar<S>& x, const LossParams& p, const IVecElement<Compute<S>>* labels,
                 const IVecElement<Compute<S>>* masked, Sums<Compute<S>, K, Regions>& sums, Vec<Compute<S>>* memory) {
  using T = Compute<S>;
  using I = IVecElement<T>;
  const int64_t classes = K ? K : p.classes;
  ClassVectors<T, K> e(memory);
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    const IVec<T> label = labels_at<T>(labels, at, i), valid = label >= 0;
    const Vec<T> top = load_classes<K>(x, classes, at, e.data());
    Vec<T> others = Vec<T>{}, others_lost = Vec<T>{}, own_d = Vec<T>{}, own_e = Vec<T>{}, w = splat<T>(1);
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
      add_compensated<T>(others, others_lost, part);
    });
    const Vec<T> z = (own_e - T(1)) + others, u = z + T(1), inverse = T(1) / u;
    const Vec<T> l = log_from_one<T>(u) + (z - (u - T(1))) * inverse - own_d;
    const IVec<T> inside = load_mask<T>(masked, at);
    add_region<T>(sums.head, inside, valid, w, l);
    const Vec<T> own_q = own_e * inverse;
#pragma GCC unroll 8
    for (int64_t k = 0; k < classes; ++k) {
      const IVec<T> is_label = label == I(k);
      const Vec<T> q = keep_where<T>(valid, e[k] * inverse);
      if constexpr (Regions == 1) {
        ClassSums<T, K>& all = sums.of[0];
        all.square[k] += q * q;
        all.intersection[k] = add_where<T>(is_label, all.intersection[k], own_q);
        all.count[k] = add_where<T>(is_label, all.count[k], splat<T>(1));
      } else {
        for (int r = 0; r < 2; ++r) {
          const IVec<T> here = r == 0 ? inside : ~inside;
          ClassSums<T, K>& own = sums.of[r];
          own.square[k] = add_where<T>(here, own.square[k], q * q);
          own.intersection[k] = add_where<T>(is_label & here, own.intersection[k], own_q);
          own.count[k] = add_where<T>(is_label & here, own.count[k], splat<T>(1));
        }
      }
    }
  }
}

template <class S>
struct ForwardScratch {
  S* piece;
  Vec<Compute<S>>* classes;  // one vector per class, and those of the sums
  size_t bytes;

  ForwardScratch(const LossParams& p, void* memory) {
    Scratch scratch(memory);
    piece = scratch.take<S>(piece_elements<S>(p.classes));
    classes = scratch.take<Vec<Compute<S>>>((p.dice_each ? 7 : 4) * p.classes);
    bytes = scratch.bytes();
  }
};

template <class S>
void forward(const LossParams& p, const Memory& memory, int64_t begin, int64_t end) {
  using T = Compute<S>;
  double* const partial = static_cast<double*>(memory.workspace);
  const ForwardScratch<S> scratch(p, memory.scratch);
  const int64_t n_sums = loss_sums(p), w_stride = p.logits_stride.w, k_stride = p.logits_stride.c;
  __builtin_memset(partial + begin * n_sums, 0, size_t((end - begin) * n_sums) * sizeof(double));
  with_regions<S>(p, [&](auto k, auto regions) {
    constexpr int K = decltype(k)::value, Regions = decltype(regions)::value;
    Sums<T, K, Regions> sums(scratch.classes + p.classes, p.classes);
    int64_t vectors = 0, current = begin;
    for_each_piece<S>(p, begin, end, [&](const LossPiece<S>& piece, int64_t index) {
      if (index != current || vectors >= kFlushVectors) {
        flush(sums, p.classes, partial + current * n_sums);
        vectors = 0;
        current = index;
      }
      for_each_planar(piece.x, k_stride, w_stride, p.classes, piece.count, scratch.piece,
                      [&](const Planar<S>& x, int64_t i, int64_t) {
                        forward_row<S, K, Regions>(x, p, piece.labels + i, piece.masked + i, sums, scratch.classes);
                      });
      vectors += ceil_div(piece.count, kWidth<T>);
    });
    if (begin < end) flush(sums, p.classes, partial + current * n_sums);
  });
}

// Of the class sums I_0.., Q_0.., T_0..; 0 where a region has no pixels.
double soft_dice(const double* s, int64_t classes, double smooth, bool of_region) {
  if (of_region && region_pixels(s, classes) == 0) return 0;
  double dice = 0;
  for (int64_t k = 0; k < classes; ++k)
    dice += 1 - (2 * s[k] + smooth) / (s[classes + k] + s[2 * classes + k] + smooth);
  return dice / double(classes);
}

// A part of weight 0 adds 0 whatever it is: a Dice of smooth 0 may be NaN, a cross entropy infinite.
double weighted(double weight, double part) { return weight == 0 ? 0 : weight * part; }

template <class T>
void write_outputs(const LossForwardParams& f) {
  const LossParams& p = f.loss;
  const double* const s = f.sums;
  const double masked = s[1] > 0 ? s[0] / (s[1] + p.denominator_offset) : 0;
  const double visible = s[3] > 0 ? s[2] / (s[3] + p.denominator_offset) : 0;
  const auto dice_of = [&](int r) {
    return soft_dice(s + kHead + 3 * p.classes * r, p.classes, p.smooth, p.dice_each);
  };
  const double dice =
      p.dice_each ? weighted(p.mask_weight, dice_of(0)) + weighted(p.visible_weight, dice_of(1)) : dice_of(0);
  *static_cast<T*>(f.ce_masked) = T(masked);
  *static_cast<T*>(f.ce_visible) = T(visible);
  *static_cast<T*>(f.dice) = T(dice);
  *static_cast<T*>(f.total) =
      T(weighted(p.ce_weight, weighted(p.mask_weight, masked) + weighted(p.visible_weight, visible)) +
        weighted(p.dice_weight, dice));
}

int64_t items(const LossForwardParams& f) { return loss_items(f.loss); }

size_t scratch_bytes(const LossForwardParams& f) {
  return with_dtype(f.loss.dtype,
                    [&](auto s) { return ForwardScratch<typename decltype(s)::type>(f.loss, nullptr).bytes; });
}

size_t workspace_bytes(const LossForwardParams& f) {
  return size_t(items(f)) * size_t(loss_sums(f.loss)) * sizeof(double);
}

void run(const LossForwardParams& f, const Memory& memory, int64_t begin, int64_t end) {
  with_dtype(f.loss.dtype, [&](auto s) { forward<typename decltype(s)::type>(f.loss, memory, begin, end); });
}

void finish(const LossForwardParams& f, const void* workspace) {
  const int64_t n_items = items(f), n_sums = loss_sums(f.loss);
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
