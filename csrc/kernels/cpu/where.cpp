// One of two images by patch: a masked image (one side is a number), a mix of two, and the mask of pixels.
//
// Elements are moved as bits of their size. A strip's rows all have the same pattern: runs of patches are filled and
// copied where a patch's row fills a cache line; where it is narrower, the pattern is spread to one element per pixel
// once per strip and blended.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

// A patch whose row has at least as many bytes is copied; a narrower one shares cache lines, and both sides are read.
constexpr int64_t kRunBytes = 64;

// What rows are filled from: elements `step` apart, rows `pitch` apart, or, where `row` is nullptr, one value.
template <class E>
struct Source {
  const E* row;
  int64_t step, pitch;
  E value;

  ENTMASK_INLINE const E* at(int64_t r) const { return row ? row + r * pitch : nullptr; }
  ENTMASK_INLINE bool is_dense() const { return !row || step == 1; }
  // Elements [first, first + n) of row r.
  ENTMASK_INLINE void write(int64_t r, int64_t first, int64_t n, E* out, int64_t out_step) const {
    const E* const from = row ? at(r) + first * step : nullptr;
    if (from && step == 1 && out_step == 1) {
      copy_elements(from, out, n);
    } else if (from) {
      for (int64_t i = 0; i < n; ++i) out[i * out_step] = from[i * step];
    } else if (out_step == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = value;
    } else {
      for (int64_t i = 0; i < n; ++i) out[i * out_step] = value;
    }
  }
};

template <class E>
struct Target {
  E* row;
  int64_t step, pitch;
};

typedef unsigned char Bytes __attribute__((vector_size(kVectorBytes)));

ENTMASK_INLINE Bytes load_bytes(const char* p) {
  Bytes v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class E>
ENTMASK_INLINE Bytes all_equal(E value) {
  E elements[kVectorBytes / sizeof(E)];
  for (E& e : elements) e = value;
  return load_bytes(reinterpret_cast<const char*>(elements));
}

// out = where the bits of pattern are set b, else a, for n neighbouring elements of each row. X, Y: a and b are rows.
// The last vector of a row is moved back to end with it.
template <bool X, bool Y, class E>
void blend_rows(const E* pattern, const Source<E>& a, const Source<E>& b, const Target<E>& out, int64_t n,
                int64_t rows) {
  const E u = a.value, v = b.value;
  const int64_t bytes = n * int64_t(sizeof(E));
  if (bytes < kVectorBytes) {
    for (int64_t r = 0; r < rows; ++r) {
      const E *const x = a.at(r), *const y = b.at(r);
      E* const __restrict to = out.row + r * out.pitch;
      for (int64_t i = 0; i < n; ++i) to[i] = E(((X ? x[i] : u) & E(~pattern[i])) | ((Y ? y[i] : v) & pattern[i]));
    }
    return;
  }
  const Bytes us = all_equal(u), vs = all_equal(v);
  const char* const bits = reinterpret_cast<const char*>(pattern);
  const int64_t x_pitch = a.pitch, y_pitch = b.pitch, to_pitch = out.pitch;
  const E *x_row = a.row, *y_row = b.row;
  E* to_row = out.row;
  for (int64_t r = 0; r < rows; ++r, x_row += x_pitch, y_row += y_pitch, to_row += to_pitch) {
    const char *const x = reinterpret_cast<const char*>(x_row), *const y = reinterpret_cast<const char*>(y_row);
    char* const to = reinterpret_cast<char*>(to_row);
    const auto blend_at = [&](int64_t i) {
      const Bytes mask = load_bytes(bits + i);
      const Bytes chosen = ((X ? load_bytes(x + i) : us) & ~mask) | ((Y ? load_bytes(y + i) : vs) & mask);
      __builtin_memcpy(to + i, &chosen, sizeof chosen);
    };
    int64_t i = 0;
    for (; i + kVectorBytes <= bytes; i += kVectorBytes) blend_at(i);
    if (i < bytes) blend_at(bytes - kVectorBytes);
  }
}
template <class E>
ENTMASK_INLINE void blend(const E* pattern, const Source<E>& a, const Source<E>& b, const Target<E>& out, int64_t n,
                          int64_t rows) {
  if (a.row && b.row)
    blend_rows<true, true>(pattern, a, b, out, n, rows);
  else if (a.row)
    blend_rows<true, false>(pattern, a, b, out, n, rows);
  else if (b.row)
    blend_rows<false, true>(pattern, a, b, out, n, rows);
  else
    blend_rows<false, false>(pattern, a, b, out, n, rows);
}

// The patches of the elements [0, n) of a row: patch j has the elements from j * patch on.
template <class E>
struct Row {
  const bool* patches;
  int64_t count, patch, n;
  const E* pattern;  // [n] all bits where the patch is True, for narrow patches; else nullptr

  // The same for all rows.
  ENTMASK_INLINE void write(const Source<E>& inside, const Source<E>& outside, const Target<E>& out,
                            int64_t rows) const {
    if (pattern && out.step == 1 && inside.is_dense() && outside.is_dense())
      return blend(pattern, outside, inside, out, n, rows);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < count;) {  // runs of patches of one state
        const bool masked = patches[j];
        int64_t end = j + 1;
        while (end < count && patches[end] == masked) ++end;
        const int64_t first = j * patch, last = end * patch < n ? end * patch : n;
        (masked ? inside : outside).write(r, first, last - first, out.row + r * out.pitch + first * out.step, out.step);
        j = end;
      }
  }
};

// Calls f(z, y, rows) for the rows of an item, those of one depth at once.
template <class F>
ENTMASK_INLINE void for_each_block(const Item& item, F&& f) {
  int64_t z = item.first ? item.first / item.rows_y : 0, y = item.first - z * item.rows_y;
  for (int64_t left = item.last - item.first; left > 0; ++z, y = 0) {
    const int64_t of_depth = item.rows_y - y, rows = of_depth < left ? of_depth : left;
    f(item.z0 + z, item.y0 + y, rows);
    left -= rows;
  }
}

// The bits of `count` patches of `patch` elements, each narrower than kRunBytes, to pattern, which has room for
// kRunBytes more: a store of fixed size per patch, whose excess the next one overwrites.
template <class E>
ENTMASK_INLINE void spread_bits(const bool* patches, int64_t count, int64_t patch, E* pattern) {
  for (int64_t j = 0; j < count; ++j) __builtin_memset(pattern + j * patch, -int(patches[j]), kRunBytes);
}

// The same of patches of one element. A bool's byte is 0 or 1; -1 has all bits, in any width.
template <class E>
ENTMASK_INLINE void spread_pixels(const bool* patches, int64_t n, E* pattern) {
  constexpr int64_t lanes = kVectorBytes / sizeof(E);
  typedef signed char Flags __attribute__((vector_size(lanes)));
  typedef E Bits __attribute__((vector_size(kVectorBytes)));
  if (n < lanes) {
    for (int64_t i = 0; i < n; ++i) pattern[i] = E(-E(patches[i]));
    return;
  }
  for (int64_t i = 0; i < n; i += lanes) {
    const int64_t k = i + lanes > n ? n - lanes : i;
    Flags flags;
    __builtin_memcpy(&flags, patches + k, sizeof flags);
    const Bits bits = __builtin_convertvector(-flags, Bits);
    __builtin_memcpy(pattern + k, &bits, sizeof bits);
  }
}

// Calls f(row, z, y, x, rows) for the rows of a strip, `unit` elements per pixel (channels_last: all channels), in
// pieces that start at element x.
template <class E, class F>
ENTMASK_INLINE void for_each_piece(const Grid& g, const Item& item, const bool* patches, int64_t unit, F&& f) {
  const int64_t patch = g.patch[2] * unit, width = g.size[2] * unit;
  if (patch * int64_t(sizeof(E)) >= kRunBytes) {
    const Row<E> row{patches, g.count[2], patch, width, nullptr};
    for_each_block(item, [&](int64_t z, int64_t y, int64_t rows) { f(row, z, y, int64_t(0), rows); });
    return;
  }
  alignas(kVectorBytes) E pattern[kChunk + kRunBytes / sizeof(E)];
  const int64_t at_once = width <= kChunk ? g.count[2] : kChunk / patch;
  for (int64_t j = 0; j < g.count[2]; j += at_once) {
    const int64_t count = g.count[2] - j < at_once ? g.count[2] - j : at_once, x = j * patch;
    const int64_t n = width - x < count * patch ? width - x : count * patch;
    if (patch == 1) {
      spread_pixels(patches + x, n, pattern);
    } else {
      spread_bits(patches + j, count, patch, pattern);
    }
    const Row<E> row{patches + j, count, patch, n, pattern};
    for_each_block(item, [&](int64_t z, int64_t y, int64_t rows) { f(row, z, y, x, rows); });
  }
}

// The rows of a side: its tensor's, or nothing but the number.
template <class E>
struct Image {
  const E* data;
  Strides stride;
  int64_t step;  // between the elements of a row
  E value;

  ENTMASK_INLINE Source<E> from(int64_t n, int64_t c, int64_t z, int64_t y, int64_t x) const {
    if (!data) return {nullptr, 1, 0, value};
    return {data + n * stride.n + c * stride.c + z * stride.d + y * stride.h + x * step, step, stride.h, value};
  }
};

template <class E>
void write_mask(const WhereParams& p, const Item& item, const bool* patches) {
  const Grid& g = p.grid;
  const Source<E> one{nullptr, 1, 0, E(p.one)}, zero{nullptr, 1, 0, E(0)};
  for_each_piece<E>(g, item, patches, 1, [&](const Row<E>& row, int64_t z, int64_t y, int64_t x, int64_t rows) {
    const int64_t pixel = ((item.n * g.size[0] + z) * g.size[1] + y) * g.size[2] + x;
    row.write(one, zero, {static_cast<E*>(p.mask) + pixel, 1, g.size[2]}, rows);
  });
}

template <class E>
void choose(const WhereParams& p, int64_t begin, int64_t end) {
  const Grid& g = p.grid;
  const Strides& os = p.out_stride;
  const int64_t splits = strip_splits(g), per_image = g.count[0] * g.count[1] * g.count[2];
  auto channels_behind = [&](const void* data, const Strides& s) { return !data || (s.c == 1 && s.w == p.channels); };
  const bool interleaved = p.channels > 1 && channels_behind(p.inside, p.inside_stride) &&
                           channels_behind(p.outside, p.outside_stride) && channels_behind(p.out, os);
  const int64_t unit = interleaved ? p.channels : 1, planes = interleaved ? 1 : p.channels;
  const auto image = [&](const void* data, const Strides& s) {
    return Image<E>{static_cast<const E*>(data), s, interleaved ? 1 : s.w, E(p.number)};
  };
  const Image<E> inside = image(p.inside, p.inside_stride), outside = image(p.outside, p.outside_stride);
  const int64_t step = interleaved ? 1 : os.w;

  Item item(g, splits, begin);
  for (int64_t index = begin; index < end; ++index, item.next()) {
    const bool* const patches = p.patches + item.n * p.patches_stride + (item.strip * g.count[2] - item.n * per_image);
    for (int64_t c = 0; c < planes; ++c)
      for_each_piece<E>(g, item, patches, unit, [&](const Row<E>& row, int64_t z, int64_t y, int64_t x, int64_t rows) {
        E* const out = static_cast<E*>(p.out) + item.n * os.n + c * os.c + z * os.d + y * os.h + x * step;
        row.write(inside.from(item.n, c, z, y, x), outside.from(item.n, c, z, y, x), {out, step, os.h}, rows);
      });
    if (!p.mask) continue;
    if (p.mask_bytes == 1)
      write_mask<uint8_t>(p, item, patches);
    else
      write_mask<E>(p, item, patches);
  }
}

int64_t items(const WhereParams& p) { return strip_items(p.grid, p.batch); }

void run(const WhereParams& p, const Memory&, int64_t begin, int64_t end) {
  switch (p.bytes) {
    case 1:
      return choose<uint8_t>(p, begin, end);
    case 2:
      return choose<uint16_t>(p, begin, end);
    case 4:
      return choose<uint32_t>(p, begin, end);
    default:
      return choose<uint64_t>(p, begin, end);
  }
}

}  // namespace

const Stage<WhereParams> where = {items, run, nullptr, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
