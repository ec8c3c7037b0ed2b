// The pseudo-labels alone, and each image's share of them that is kept.
//
// Items are pieces of rows; each counts what it keeps, and the counts of an image are added up at the end. Without a
// gate no exponential is computed.
#include "labels.h"
#include "pixels.h"
#include "planar.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

// torch.argmax's answer: the first maximum, or the first NaN.
template <int K, class A>
ENTMASK_INLINE IVec<typename A::T> argmax(const A& x, int64_t classes, int64_t i) {
  using T = typename A::T;
  Vec<T> top = x.load_class(0, i);
  IVec<T> label = IVec<T>{};
#pragma GCC unroll 8
  for (int64_t k = 1; k < (K ? K : classes); ++k) {
    const Vec<T> v = x.load_class(k, i);
    const IVec<T> lead = ~(v <= top) & (top == top);
    top = lead ? v : top;
    label = lead ? IVec<T>{} + IVecElement<T>(k) : label;
  }
  return label;
}

template <class S, int K>
void label_row(const Planar<S>& x, int64_t classes, const Gate<Compute<S>>& gate, IVecElement<Compute<S>>* label) {
  using T = Compute<S>;
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    const IVec<T> l = gate.active ? gate(softmax<true, K>(x, classes, at)) : argmax<K>(x, classes, at);
    __builtin_memcpy(label + at, &l, sizeof l);
  }
}

template <class S>
void label(const PseudoLabelsParams& p, int64_t* kept, void* scratch, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const PixelRows rows(p.size, p.logits_stride);
  const Gate<T> gate(p.gated, p.min_confidence, p.label_dtype);
  const auto row = with_classes<S>(p.classes, [](auto k) { return &label_row<S, decltype(k)::value>; });
  S* const logits = static_cast<S*>(const_cast<void*>(p.logits));
  IVecElement<T> line[kChunk + kWidth<T>];
  for (int64_t item = begin; item < end; ++item) {
    int64_t ignored = 0;
    rows.for_each_chunk(item, p.logits_stride, [&](int64_t offset, int64_t first, int64_t n) {
      for_each_planar(logits + offset, p.logits_stride.c, p.logits_stride.w, p.classes, n, static_cast<S*>(scratch),
                      [&](const Planar<S>& x, int64_t i, int64_t) { row(x, p.classes, gate, line + i); });
      store_labels<T>(line, n, p.label_dtype, p.labels, first);
      for (int64_t i = 0; i < n; ++i) ignored += line[i] == gate.ignored;
    });
    kept[item] = rows.pixels(item) - ignored;
  }
}

int64_t items(const PseudoLabelsParams& p) { return PixelRows(p.size, p.logits_stride).items(p.batch); }

size_t workspace(const PseudoLabelsParams& p) { return size_t(items(p)) * sizeof(int64_t); }

size_t scratch_bytes(const PseudoLabelsParams& p) {
  const PixelRows rows(p.size, p.logits_stride);
  return row_scratch(p, rows.width, rows.chunks_are_whole());
}

void run(const PseudoLabelsParams& p, const Memory& memory, int64_t begin, int64_t end) {
  int64_t* const kept = static_cast<int64_t*>(memory.workspace);
  with_dtype(p.dtype, [&](auto s) { label<typename decltype(s)::type>(p, kept, memory.scratch, begin, end); });
}

void finish(const PseudoLabelsParams& p, const void* workspace) {
  const int64_t of_an_image = PixelRows(p.size, p.logits_stride).items(1);
  const int64_t pixels = p.size[0] * p.size[1] * p.size[2];
  for (int64_t n = 0; n < p.batch; ++n) {
    int64_t kept = 0;
    for (int64_t i = 0; i < of_an_image; ++i) kept += static_cast<const int64_t*>(workspace)[n * of_an_image + i];
    p.accepted[n] = pixels ? float(double(kept) / double(pixels)) : 0.0f;
  }
}

}  // namespace

const Stage<PseudoLabelsParams> pseudo_labels = {items, run, scratch_bytes, workspace, finish};

}  // namespace entmask::cpu::ENTMASK_ISA
