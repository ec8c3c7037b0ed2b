// Uncertainty of each pixel, pooled over patches or not, with the pseudo-labels in the same pass.
//
// A strip is one row of patches of one image. Its rows of pixels are read one at a time and added up, column by column,
// in line buffers that stay in L1; these go to the sums of the patches, in double, every few rows, so that the mean
// over a patch of a million pixels stays accurate. A strip of large patches is split into several items.
#include "labels.h"
#include "pixels.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

// ---------------------------------------------------------------- one row

template <class T>
struct RowArgs {
  int64_t classes;
  T scale, ceiling;
  bool margin;  // value_row, not of entropy: else least confidence
  Gate<T> gate;
  T* h;     // value_row: the pixels' uncertainties; add_row: P below
  T* rest;  // add_row: R below
  IVecElement<T>* label;
};

template <class T>
ENTMASK_INLINE void store_label(const Softmax<T>& p, const RowArgs<T>& a, int64_t at) {
  const IVec<T> label = a.gate(p);
  __builtin_memcpy(a.label + at, &label, sizeof label);
}

// Uncertainty of the n pixels of a planar row to h; with labels the first maximum's index, gated, to label.
template <class S, bool entropy, bool labels, int K>
void value_row(const Planar<S>& x, const RowArgs<Compute<S>>& a) {
  using T = Compute<S>;
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    const Softmax<T> p = softmax<labels, K>(x, a.classes, at);
    store(a.h + at, entropy ? entropy_of(p, a.scale, a.ceiling) : doubt_of(p, a.margin, a.scale));
    if constexpr (labels) store_label(p, a, at);
  }
}

// A row of pixels' entropies added to the sums of its columns. The logarithms are not taken here:
//   sum_i H_i = sum_i ln(1 + z_i) - s_i / (1 + z_i) = ln(1 + P) + R
//   1 + P = prod_i (1 + z_i): P <- P z + (P + z),   R = -sum_i s_i / (1 + z_i)
// All terms are >= 0, and P holds no 1, so tiny entropies keep their relative accuracy.
template <class S, bool labels, int K>
void add_row(const Planar<S>& x, const RowArgs<Compute<S>>& a) {
  using T = Compute<S>;
  for (int64_t i = 0; i < x.n; i += kWidth<T>) {
    const int64_t at = vector_start<T>(i, x.n);
    const Softmax<T> p = softmax<labels, K>(x, a.classes, at);
    Vec<T> z = p.z, rest = p.max * T(0) - p.s / (p.z + T(1));  // max * 0: NaN where the maximum is not finite
    if (at != i) {                                             // the pixels of the vector before are in already
      const IVec<T> fresh = lanes_from<T>(i - at);
      z = keep_where<T>(fresh, z);
      rest = keep_where<T>(fresh, rest);
    }
    const Vec<T> product = load(a.h + at);
    store(a.h + at, product * z + (product + z));
    store(a.rest + at, load(a.rest + at) + rest);
    if constexpr (labels) store_label(p, a, at);
  }
}

// Rows that are added before the columns go to the patches: P stays below 2^112 for 128 classes, 2^88 for the most.
ENTMASK_INLINE int64_t flush_rows(int64_t classes) { return classes <= 128 ? 16 : 8; }

template <class S>
using RowFunction = void (*)(const Planar<S>&, const RowArgs<Compute<S>>&);

template <class S>
RowFunction<S> pick_row(bool adds, bool entropy, bool labels, int64_t classes) {
  return with_classes<S>(classes, [&](auto k) -> RowFunction<S> {
    constexpr int K = decltype(k)::value;
    if (adds) return labels ? add_row<S, true, K> : add_row<S, false, K>;
    if (entropy) return labels ? value_row<S, true, true, K> : value_row<S, true, false, K>;
    return labels ? value_row<S, false, true, K> : value_row<S, false, false, K>;
  });
}

// torch.argmax's answer where a class is NaN: the first NaN.
template <class S>
int64_t argmax_with_nan(const S* x, int64_t k_stride, int64_t classes) {
  int64_t best = 0;
  Compute<S> top = scalar(x[0]);
  for (int64_t k = 1; k < classes && top == top; ++k) {
    const Compute<S> v = scalar(x[k * k_stride]);
    if (v > top || v != v) best = k, top = v;
  }
  return best;
}

// Reads rows of the logits: calls the row function and stores the labels.
template <class S>
struct RowReader {
  using T = Compute<S>;
  RowFunction<S> row;
  S* logits;
  int64_t k_stride, w_stride;
  LabelDtype label_dtype;
  void* labels;
  RowArgs<T> args;
  S* piece;
  IVecElement<T> label[kChunk + kWidth<T>];

  // normalize: of entropy.
  RowReader(const void* x, const Strides& stride, int64_t classes, Uncertainty uncertainty, bool normalize, bool adds,
            const Gate<T>& gate, LabelDtype dtype, void* out, void* scratch)
      : row(pick_row<S>(adds, uncertainty == Uncertainty::entropy, dtype != LabelDtype::none, classes)),
        logits(static_cast<S*>(const_cast<void*>(x))),
        k_stride(stride.c),
        w_stride(stride.w),
        label_dtype(dtype),
        labels(out),
        args{classes, T(1), T(1), uncertainty == Uncertainty::margin, gate, nullptr, nullptr, nullptr},
        piece(static_cast<S*>(scratch)) {
    if (uncertainty == Uncertainty::least_confidence) args.scale = T(double(classes) / double(classes - 1));
    if (uncertainty != Uncertainty::entropy) return;
    if (normalize)
      args.scale = T(1) / T(__builtin_log(double(classes)));
    else
      args.ceiling = T(__builtin_inf());
  }

  // n <= kChunk pixels whose first is at element `offset` of the logits and `pixel` of the labels. h and rest have room
  // for a vector more.
  ENTMASK_INLINE void read(int64_t offset, int64_t pixel, int64_t n, T* h, T* rest = nullptr) {
    for_each_planar(logits + offset, k_stride, w_stride, args.classes, n, piece,
                    [&](const Planar<S>& x, int64_t i, int64_t) {
                      args.h = h + i;
                      args.rest = rest ? rest + i : nullptr;
                      args.label = label + i;
                      row(x, args);
                    });
    store_labels<T>(label, n, label_dtype, labels, pixel);
  }

  // The labels again of the pixels of this row whose uncertainty, or a sum that it is in, is NaN.
  void correct_labels(int64_t offset, int64_t pixel, int64_t n, const T* h) {
    if (label_dtype == LabelDtype::none || args.gate.active) return;  // a gate has ignored them
    for (int64_t i = 0; i < n; ++i) {
      if (h[i] == h[i]) continue;
      const int64_t best = argmax_with_nan(logits + offset + i * w_stride, k_stride, args.classes);
      if (label_dtype == LabelDtype::uint8)
        static_cast<uint8_t*>(labels)[pixel + i] = uint8_t(best);
      else
        static_cast<int64_t*>(labels)[pixel + i] = best;
    }
  }
};

template <class T>
ENTMASK_INLINE bool any_nan(const T* h, int64_t n) {
  IVec<T> nan = IVec<T>{};
  int64_t i = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) nan |= load(h + i) != load(h + i);
  bool found = any<T>(nan);
  for (; i < n; ++i) found |= h[i] != h[i];
  return found;
}

// ---------------------------------------------------------------- pooling

// The pixels of a row from x0 on that are handled at once: whole patches, or a part of one that is wider than a chunk.
ENTMASK_INLINE int64_t chunk_end(int64_t x0, int64_t width, int64_t patch) {
  const int64_t whole = patch <= kChunk ? x0 + kChunk / patch * patch : (x0 / patch + 1) * patch;
  const int64_t end = whole < x0 + kChunk ? whole : x0 + kChunk;
  return end < width ? end : width;
}

ENTMASK_INLINE double patch_pixels(const Grid& g, int64_t gz, int64_t gy, int64_t gx) {
  return double(extent(g, 0, gz)) * double(extent(g, 1, gy)) * double(extent(g, 2, gx));
}

// Adds the line's pixels to the sum of the patch that each lies in: patch j has columns [j * width, ...), the last may
// be short.
template <class T>
ENTMASK_INLINE void add_line(const T* line, int64_t n, int64_t width, double* sums) {
  for (int64_t x = 0, j = 0; x < n; x += width, ++j) {
    const int64_t end = x + width < n ? x + width : n;
    int64_t i = x;
    double total = 0;
    for (; i + kWidth<T> <= end; i += kWidth<T>) total += sum(load(line + i));
    for (; i < end; ++i) total += double(line[i]);
    sums[j] += total;
  }
}

// The mean over a patch; rounding may have carried a sum of ones a little above.
template <class T>
ENTMASK_INLINE T score_of(double total, double pixels) {
  const double mean = total / pixels;
  return T(mean > 1 ? 1.0 : mean);
}

// Sums over the columns of a chunk, of the rows since the last flush.
template <class T>
struct Lines {
  T h[kChunk + kWidth<T>];  // the last row's uncertainties; when adding rows: P of add_row
  T rest[kChunk + kWidth<T>];
  T sum[kChunk + kWidth<T>];

  ENTMASK_INLINE void clear(int64_t n) {
    const size_t bytes = size_t(n + kWidth<T>) * sizeof(T);
    __builtin_memset(h, 0, bytes);
    __builtin_memset(rest, 0, bytes);
    __builtin_memset(sum, 0, bytes);
  }
  ENTMASK_INLINE void finish_rows(int64_t n, T scale) {
    for (int64_t i = 0; i < n; i += kWidth<T>)
      store(sum + i, (log1p_nonnegative<T>(load(h + i)) + load(rest + i)) * scale);
  }
};

template <class S>
void pool(const EntropyPoolParams& p, double* partial, void* scratch, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const Grid& g = p.grid;
  const Strides& st = p.logits_stride;
  const int64_t splits = strip_splits(g), width = g.size[2], pw = g.patch[2];
  const bool single = g.patch[0] * g.patch[1] * pw == 1;  // a patch is a pixel: its score is the uncertainty itself
  const bool adds = p.uncertainty == Uncertainty::entropy && !p.count && !single;  // no pixel's own entropy is needed
  const int64_t flush = flush_rows(p.classes);
  const Gate<T> gate(p.gated, p.min_confidence, p.label_dtype);
  RowReader<S> reader(p.logits, st, p.classes, p.uncertainty, true, adds, gate, p.label_dtype, p.labels, scratch);
  Lines<T> lines;
  double sums[kChunk];

  for (int64_t index = begin; index < end; ++index) {
    const Item item(g, splits, index);
    const T threshold = number_of<T>(p.threshold, item.n);
    for (int64_t x0 = 0, x1; x0 < width; x0 = x1) {
      x1 = chunk_end(x0, width, pw);
      const int64_t count = x1 - x0, patches = ceil_div(count, pw), gx0 = x0 / pw;
      const bool continued = x0 > gx0 * pw;  // a wide patch's later part
      if (!continued) __builtin_memset(sums, 0, size_t(patches) * sizeof(double));
      auto offset = [&](int64_t r) { return item.n * st.n + item.z(r) * st.d + item.y(r) * st.h + x0 * st.w; };
      auto pixel = [&](int64_t r) { return ((item.n * g.size[0] + item.z(r)) * g.size[1] + item.y(r)) * width + x0; };

      for (int64_t first = item.first; first < item.last; first += flush) {
        const int64_t last = first + flush < item.last ? first + flush : item.last;
        lines.clear(count);
        for (int64_t r = first; r < last; ++r) {
          reader.read(offset(r), pixel(r), count, lines.h, lines.rest);
          if (adds) continue;
          if (p.labels && any_nan(lines.h, count)) reader.correct_labels(offset(r), pixel(r), count, lines.h);
          if (p.count)  // a NaN pixel counts, and no pixel reaches a NaN
            for (int64_t i = 0; i < count; ++i)
              lines.h[i] = lines.h[i] >= threshold || lines.h[i] != lines.h[i] ? T(1) : T(0);
          for (int64_t i = 0; i < count; ++i) lines.sum[i] += lines.h[i];
        }
        if (adds) {
          lines.finish_rows(count, reader.args.scale);
          if (p.labels && any_nan(lines.sum, count))
            for (int64_t r = first; r < last; ++r) reader.correct_labels(offset(r), pixel(r), count, lines.sum);
        }
        if (single)
          __builtin_memcpy(static_cast<T*>(p.scores) + item.strip * width + x0, lines.sum, size_t(count) * sizeof(T));
        else
          add_line(lines.sum, count, pw, sums);
      }
      const bool complete = x1 == width || x1 % pw == 0;
      if (!complete || single) continue;
      for (int64_t j = 0; j < patches; ++j) {
        const int64_t gx = gx0 + j;
        if (partial)
          partial[index * g.count[2] + gx] = sums[j];
        else
          static_cast<T*>(p.scores)[item.strip * g.count[2] + gx] =
              score_of<T>(sums[j], patch_pixels(g, item.gz, item.gy, gx));
      }
    }
  }
}

// ---------------------------------------------------------------- map

template <class S>
void map(const EntropyMapParams& p, void* scratch, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const PixelRows rows(p.size, p.logits_stride);
  const Gate<T> none(false, Number{}, LabelDtype::none);
  RowReader<S> reader(p.logits, p.logits_stride, p.classes, p.uncertainty, p.normalize, false, none, LabelDtype::none,
                      nullptr, scratch);
  T h[kChunk + kWidth<T>];
  for (int64_t item = begin; item < end; ++item)
    rows.for_each_chunk(item, p.logits_stride, [&](int64_t offset, int64_t pixel, int64_t n) {
      T* const out = static_cast<T*>(p.entropy) + pixel;
      if (p.logits_stride.w != 1 || n < kWidth<T>) {  // whole vectors are written, beyond the row too
        reader.read(offset, 0, n, h);
        __builtin_memcpy(out, h, size_t(n) * sizeof(T));
      } else {
        reader.read(offset, 0, n, out);
      }
    });
}

int64_t pool_items(const EntropyPoolParams& p) { return strip_items(p.grid, p.batch); }

// One sum per patch and item, where a strip is more than one item.
size_t pool_workspace(const EntropyPoolParams& p) {
  return strip_splits(p.grid) == 1 ? 0 : size_t(pool_items(p)) * size_t(p.grid.count[2]) * sizeof(double);
}

size_t pool_scratch(const EntropyPoolParams& p) {
  const int64_t width = p.grid.size[2];
  return row_scratch(p, width, chunk_end(0, width, p.grid.patch[2]) == width);
}

void run_pool(const EntropyPoolParams& p, const Memory& memory, int64_t begin, int64_t end) {
  double* partial = pool_workspace(p) ? static_cast<double*>(memory.workspace) : nullptr;
  with_dtype(p.dtype, [&](auto s) { pool<typename decltype(s)::type>(p, partial, memory.scratch, begin, end); });
}

void finish_pool(const EntropyPoolParams& p, const void* workspace) {
  const Grid& g = p.grid;
  const int64_t splits = strip_splits(g), strips = p.batch * g.count[0] * g.count[1];
  if (splits == 1) return;
  const double* partial = static_cast<const double*>(workspace);
  for (int64_t strip = 0; strip < strips; ++strip)
    for (int64_t gx = 0; gx < g.count[2]; ++gx) {
      double total = 0;
      for (int64_t s = 0; s < splits; ++s) total += partial[(strip * splits + s) * g.count[2] + gx];
      const double pixels = patch_pixels(g, strip / g.count[1] % g.count[0], strip % g.count[1], gx);
      const int64_t at = strip * g.count[2] + gx;
      if (p.dtype == Dtype::float64)
        static_cast<double*>(p.scores)[at] = score_of<double>(total, pixels);
      else
        static_cast<float*>(p.scores)[at] = score_of<float>(total, pixels);
    }
}

int64_t map_items(const EntropyMapParams& p) { return PixelRows(p.size, p.logits_stride).items(p.batch); }

size_t map_scratch(const EntropyMapParams& p) {
  const PixelRows rows(p.size, p.logits_stride);
  return row_scratch(p, rows.width, rows.chunks_are_whole());
}

void run_map(const EntropyMapParams& p, const Memory& memory, int64_t begin, int64_t end) {
  with_dtype(p.dtype, [&](auto s) { map<typename decltype(s)::type>(p, memory.scratch, begin, end); });
}

}  // namespace

const Stage<EntropyPoolParams> entropy_pool = {pool_items, run_pool, pool_scratch, pool_workspace, finish_pool};
const Stage<EntropyMapParams> entropy_map = {map_items, run_map, map_scratch, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
