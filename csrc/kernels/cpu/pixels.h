// The pixels of a batch as pieces of rows, for stages that look at each pixel alone.
#pragma once

#include "grid.h"
#include "planar.h"

namespace entmask::cpu::ENTMASK_ISA {

// Items are pieces of at most kItem pixels of a row; where the rows of an image lie behind each other in the logits
// they are one long row.
struct PixelRows {
  static constexpr int64_t kItem = 8192;
  int64_t planes, rows, width, pieces;

  PixelRows(const int64_t (&size)[3], const Strides& logits) : planes(size[0]), rows(size[1]), width(size[2]) {
    if (logits.h == width * logits.w) width *= rows, rows = 1;
    pieces = ceil_div(width, kItem);
  }
  int64_t items(int64_t batch) const { return batch * planes * rows * pieces; }

  ENTMASK_INLINE int64_t begin(int64_t item) const { return item % pieces * kItem; }
  ENTMASK_INLINE int64_t end(int64_t item) const { return begin(item) + kItem < width ? begin(item) + kItem : width; }
  ENTMASK_INLINE int64_t pixels(int64_t item) const { return end(item) - begin(item); }

  // Calls f(element of the logits, pixel of the batch, n) for n <= kChunk pixels of an item after the other.
  template <class F>
  ENTMASK_INLINE void for_each_chunk(int64_t item, const Strides& st, F&& f) const {
    const int64_t row = item / pieces, y = row % rows, z = row / rows % planes, n = row / rows / planes;
    const int64_t base = n * st.n + z * st.d + y * st.h;
    for (int64_t x = begin(item); x < end(item); x += kChunk) {
      const int64_t left = end(item) - x;
      f(base + x * st.w, row * width + x, left < kChunk ? left : kChunk);
    }
  }

  // Whether no row has a last chunk that could be narrower than a vector.
  bool chunks_are_whole() const { return width <= kChunk || width % kChunk == 0; }
};

// Scratch for staged pieces of rows of `width` pixels: none where they are planar and read as a whole.
template <class P>
size_t row_scratch(const P& p, int64_t width, bool as_a_whole) {
  return with_dtype(p.dtype, [&](auto s) {
    using S = typename decltype(s)::type;
    if (p.logits_stride.w == 1 && width >= kWidth<Compute<S>> && as_a_whole) return size_t(0);
    return size_t(piece_elements<S>(p.classes)) * sizeof(S);
  });
}

}  // namespace entmask::cpu::ENTMASK_ISA
