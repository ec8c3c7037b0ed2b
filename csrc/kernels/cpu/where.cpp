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

// What a row is filled from: elements `step` apart, or, where `row` is nullptr, one value.
template <class E>
struct Source {
  const E* row;
  int64_t step;
  E value;

  ENTMASK_INLINE Source from(int64_t i) const { return {row ? row + i * step : nullptr, step, value}; }
  ENTMASK_INLINE void write(E* out, int64_t out_step, int64_t n) const {
    if (row && step == 1 && out_step == 1) {
      __builtin_memcpy(out, row, size_t(n) * sizeof(E));
    } else if (row) {
      for (int64_t i = 0; i < n; ++i) out[i * out_step] = row[i * step];
    } else if (out_step == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = value;
    } else {
      for (int64_t i = 0; i < n; ++i) out[i * out_step] = value;
    }
  }
};

// out = where the bits of pattern are set b, else a, for n neighbouring elements.
template <class E>
ENTMASK_INLINE void blend(const E* pattern, const Source<E>& a, const Source<E>& b, E* out, int64_t n) {
  const E *x = a.row, *y = b.row, u = a.value, v = b.value;
  if (x && y)
    for (int64_t i = 0; i < n; ++i) out[i] = E((x[i] & E(~pattern[i])) | (y[i] & pattern[i]));
  else if (x)
    for (int64_t i = 0; i < n; ++i) out[i] = E((x[i] & E(~pattern[i])) | (v & pattern[i]));
  else if (y)
    for (int64_t i = 0; i < n; ++i) out[i] = E((u & E(~pattern[i])) | (y[i] & pattern[i]));
  else
    for (int64_t i = 0; i < n; ++i) out[i] = E((u & E(~pattern[i])) | (v & pattern[i]));
}

// The patches of the elements [0, n) of a row: patch j has the elements from j * patch on.
template <class E>
struct Row {
  const bool* patches;
  int64_t count, patch, n;
  const E* pattern;  // [n] all bits where the patch is True, for narrow patches; else nullptr

  ENTMASK_INLINE void write(const Source<E>& inside, const Source<E>& outside, E* out, int64_t out_step) const {
    const bool dense = out_step == 1 && (!inside.row || inside.step == 1) && (!outside.row || outside.step == 1);
    if (pattern && dense) return blend(pattern, outside, inside, out, n);
    for (int64_t j = 0; j < count;) {  // runs of patches of one state
      const bool masked = patches[j];
      int64_t end = j + 1;
      while (end < count && patches[end] == masked) ++end;
      const int64_t first = j * patch, last = end * patch < n ? end * patch : n;
      (masked ? inside : outside).from(first).write(out + first * out_step, out_step, last - first);
      j = end;
    }
  }
};

// Calls f(row, z, y, x) for the rows of a strip, `unit` elements per pixel (channels_last: all channels), in pieces
// that start at element x.
template <class E, class F>
ENTMASK_INLINE void for_each_row(const Grid& g, const Item& item, const bool* patches, int64_t unit, F&& f) {
  const int64_t patch = g.patch[2] * unit, width = g.size[2] * unit;
  if (patch * int64_t(sizeof(E)) >= kRunBytes) {
    const Row<E> row{patches, g.count[2], patch, width, nullptr};
    for (int64_t r = item.first; r < item.last; ++r) f(row, item.z(r), item.y(r), int64_t(0));
    return;
  }
  E pattern[kChunk];
  const int64_t chunk = kChunk / patch * patch;
  for (int64_t x = 0; x < width; x += chunk) {
    const int64_t n = width - x < chunk ? width - x : chunk;
    if (patch == 1) {
      for (int64_t i = 0; i < n; ++i) pattern[i] = E(-E(patches[x + i]));
    } else {
      for (int64_t i = 0, j = x / patch; i < n; ++j)
        for (const int64_t end = i + patch < n ? i + patch : n; i < end; ++i) pattern[i] = E(-E(patches[j]));
    }
    const Row<E> row{patches + x / patch, ceil_div(n, patch), patch, n, pattern};
    for (int64_t r = item.first; r < item.last; ++r) f(row, item.z(r), item.y(r), x);
  }
}

// The rows of a side: its tensor's, or nothing but the number.
template <class E>
struct Image {
  const E* data;
  Strides stride;
  int64_t step;  // between the elements of a row
  E value;

  ENTMASK_INLINE Source<E> row(int64_t n, int64_t c, int64_t z, int64_t y, int64_t x) const {
    if (!data) return {nullptr, 1, value};
    return {data + n * stride.n + c * stride.c + z * stride.d + y * stride.h + x * step, step, value};
  }
};

template <class E>
void write_mask(const WhereParams& p, const Item& item, const bool* patches) {
  const Grid& g = p.grid;
  const Source<E> one{nullptr, 1, E(p.one)}, zero{nullptr, 1, E(0)};
  for_each_row<E>(g, item, patches, 1, [&](const Row<E>& row, int64_t z, int64_t y, int64_t x) {
    const int64_t pixel = ((item.n * g.size[0] + z) * g.size[1] + y) * g.size[2] + x;
    row.write(one, zero, static_cast<E*>(p.mask) + pixel, 1);
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
      for_each_row<E>(g, item, patches, unit, [&](const Row<E>& row, int64_t z, int64_t y, int64_t x) {
        E* const out = static_cast<E*>(p.out) + item.n * os.n + c * os.c + z * os.d + y * os.h + x * step;
        row.write(inside.row(item.n, c, z, y, x), outside.row(item.n, c, z, y, x), out, step);
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
