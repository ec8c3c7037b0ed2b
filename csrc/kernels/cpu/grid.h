// How the pixels of an image are cut into work, strips and items, and how the rows of patches are copied.
//
// A strip is one row of patches of one image (2-D: patch[1] rows of pixels; 3-D: patch[0] * patch[1]). A strip of many
// pixels is split by rows into several items, by shape alone.
#pragma once

#include "../params.h"
#include "simd.h"

namespace entmask::cpu::ENTMASK_ISA {

constexpr int64_t kChunk = 1024;          // pixels of a row handled at a time: line buffers stay in L1
constexpr int64_t kItemPixels = 1 << 15;  // a strip of more pixels is several items

ENTMASK_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The number of a row (an image), in T: the op brings what the CPU reads to the compute dtype.
template <class T>
ENTMASK_INLINE T number_of(const Number& n, int64_t row) {
  return n.data ? static_cast<const T*>(n.data)[row * n.stride] : T(n.value);
}

// Pixels of a patch along an axis: fewer where the image's edge cuts it.
ENTMASK_INLINE int64_t extent(const Grid& g, int axis, int64_t patch) {
  const int64_t left = g.size[axis] - patch * g.patch[axis];
  return left < g.patch[axis] ? left : g.patch[axis];
}

ENTMASK_INLINE int64_t strip_splits(const Grid& g) {
  const int64_t rows = g.patch[0] * g.patch[1];
  const int64_t splits = ceil_div(rows * g.size[2], kItemPixels);
  const int64_t at_least_one = splits > 1 ? splits : 1;
  return at_least_one < rows ? at_least_one : rows;
}

ENTMASK_INLINE int64_t strip_items(const Grid& g, int64_t batch) {
  return batch * g.count[0] * g.count[1] * strip_splits(g);
}

// Rows [first, last) of a strip; row r is at depth z(r), height y(r). There must be such an item: no axis is empty.
struct Item {
  const Grid& g;
  int64_t splits, split, strip, n, gz, gy;
  int64_t z0, y0, rows_y, first, last;

  ENTMASK_INLINE Item(const Grid& grid, int64_t split_count, int64_t item) : g(grid), splits(split_count) {
    split = item % splits;
    strip = item / splits;
    gy = strip % g.count[1];
    gz = strip / g.count[1] % g.count[0];
    n = strip / g.count[1] / g.count[0];
    find_rows();
  }
  // Becomes the item behind this one, without the divisions above: where pixels are only moved, they are felt.
  ENTMASK_INLINE void next() {
    if (++split == splits) {
      split = 0;
      ++strip;
      if (++gy == g.count[1]) {
        gy = 0;
        if (++gz == g.count[0]) {
          gz = 0;
          ++n;
        }
      }
    }
    find_rows();
  }
  ENTMASK_INLINE int64_t z(int64_t r) const { return z0 + r / rows_y; }
  ENTMASK_INLINE int64_t y(int64_t r) const { return y0 + r % rows_y; }

 private:
  ENTMASK_INLINE void find_rows() {
    z0 = gz * g.patch[0];
    y0 = gy * g.patch[1];
    rows_y = extent(g, 1, gy);
    const int64_t rows = extent(g, 0, gz) * rows_y;
    first = splits == 1 ? 0 : rows * split / splits;
    last = splits == 1 ? rows : rows * (split + 1) / splits;
  }
};

template <int bytes>
struct Block {
  unsigned char byte[bytes];
};
// [from, from + n) to [to, to + n) by two blocks, the second ending with the row: bytes <= n <= 2 * bytes.
template <int bytes>
ENTMASK_INLINE void copy_ends(const char* from, char* to, int64_t n) {
  Block<bytes> first, last;
  __builtin_memcpy(&first, from, bytes);
  __builtin_memcpy(&last, from + n - bytes, bytes);
  __builtin_memcpy(to, &first, bytes);
  __builtin_memcpy(to + n - bytes, &last, bytes);
}

// The row of a patch is short: a call of memcpy takes longer than the copy.
template <class E>
ENTMASK_INLINE void copy_elements(const E* from, E* to, int64_t count) {
  const char* const in = reinterpret_cast<const char*>(from);
  char* const out = reinterpret_cast<char*>(to);
  const int64_t n = count * int64_t(sizeof(E));
  if (n > 512) {
    __builtin_memcpy(out, in, size_t(n));
  } else if (n >= 64) {
    for (int64_t i = 0; i + 64 < n; i += 64) __builtin_memcpy(out + i, in + i, 64);
    __builtin_memcpy(out + n - 64, in + n - 64, 64);
  } else if (n >= 32) {
    copy_ends<32>(in, out, n);
  } else if (n >= 16) {
    copy_ends<16>(in, out, n);
  } else if (n >= 8) {
    copy_ends<8>(in, out, n);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

// For each of n pixels of a row from column x on: value(j) of the patch column j that it lies in.
template <class E, class F>
ENTMASK_INLINE void spread_patches(const Grid& g, int64_t x, int64_t n, E* out, F&& value) {
  const int64_t width = g.patch[2];
  int64_t i = 0;
  for (int64_t j = x / width; i < n; ++j) {
    const int64_t end = (j + 1) * width - x < n ? (j + 1) * width - x : n;
    const E v = value(j);
    for (; i < end; ++i) out[i] = v;
  }
}

}  // namespace entmask::cpu::ENTMASK_ISA
