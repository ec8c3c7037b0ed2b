// One of two images by patch: a masked image (one side is a number), a mix of two, and the mask of pixels.
//
// Elements are moved as bits of their size. A strip's rows all have the same pattern: runs of patches are filled and
// copied where patches are wide; where they are narrow, the pattern is spread to one element per pixel once per strip
// and blended.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

constexpr int64_t kRunBytes = 32;  // a patch at least this wide is worth a memcpy

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

// out = where the bits of pattern are set b, else a, for n neighbouring elements of each row. X, Y: a and b are rows.
template <bool X, bool Y, class E>
void blend_rows(const E* pattern, const Source<E>& a, const Source<E>& b, const Target<E>& out, int64_t n,
                int64_t rows) {
  const E u = a.value, v = b.value;
  for (int64_t r = 0; r < rows; ++r) {
    const E *const x = a.at(r), *const y = b.at(r);
    E* const __restrict to = out.row + r * out.pitch;
    for (int64_t i = 0; i < n; ++i) to[i] = E(((X ? x[i] : u) & E(~pattern[i])) | ((Y ? y[i] : v) & pattern[i]));
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
  for (int64_t r = item.first; r < item.last;) {
    const int64_t left = item.y0 + item.rows_y - item.y(r), rows = left < item.last - r ? left : item.last - r;
    f(item.z(r), item.y(r), rows);
    r += rows;
  }
}

// The bits of `count` patches of `patch` elements, each narrower than kRunBytes, to pattern, which has room for as many
// more: a store of fixed size per patch, whose excess the next one overwrites.
template <class E>
ENTMASK_INLINE void spread_bits(const bool* patches, int64_t count, int64_t patch, E* pattern) {
  for (int64_t j = 0; j < count; ++j) __builtin_memset(pattern + j * patch, -int(patches[j]), kRunBytes);
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
  const int64_t chunk = kChunk / patch * patch;
  for (int64_t x = 0; x < width; x += chunk) {
    const int64_t n = width - x < chunk ? width - x : chunk, count = ceil_div(n, patch);
    if (patch == 1) {
      for (int64_t i = 0; i < n; ++i) pattern[i] = E(-E(patches[x + i]));
    } else {
      spread_bits(patches + x / patch, count, patch, pattern);
    }
    const Row<E> row{patches + x / patch, count, patch, n, pattern};
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

  for (int64_t index = begin; index < end; ++index) {
    const Item item(g, splits, index);
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
