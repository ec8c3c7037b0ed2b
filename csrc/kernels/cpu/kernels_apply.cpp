// The masked image and the mask of pixels, from the mask of patches.
//
// Elements are moved as bits of their size. A strip's rows all have the same pattern: runs of masked and visible pixels
// are filled and copied where patches are wide; where they are narrow, the pattern is spread to one element a pixel
// once a strip and blended.
#include "grid.h"
#include "tables.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

constexpr int64_t kRunBytes = 32;  // a patch at least this wide is worth a memcpy

template <class E>
ENTMASK_INLINE void fill(E* out, int64_t n, E value) {
  for (int64_t i = 0; i < n; ++i) out[i] = value;
}

// The bits of a number in a dtype.
template <class S>
uint64_t bits_of(double value) {
  S stored;
  if constexpr (sizeof(S) == 8) {
    stored = value;
  } else if constexpr (sizeof(S) == 4) {
    stored = float(value);
  } else {
    store(&stored, splat<float>(float(value)), 1);
  }
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &stored, sizeof stored);
  return bits;
}

// Runs of patches of one state along the columns [0, n) of a row: f(first, last, masked).
template <class F>
ENTMASK_INLINE void for_each_run(const bool* patches, int64_t count, int64_t patch, int64_t n, F&& f) {
  for (int64_t j = 0; j < count;) {
    const bool masked = patches[j];
    int64_t end = j + 1;
    while (end < count && patches[end] == masked) ++end;
    f(j * patch, end * patch < n ? end * patch : n, masked);
    j = end;
  }
}

// A row of n pixels; without an image (in == nullptr) the visible pixels become 0: the mask itself.
template <class E>
struct Row {
  const bool* patches;
  int64_t count, patch, n;
  const E* pattern;  // [n] all bits where masked, for narrow patches; else nullptr
  E value;

  ENTMASK_INLINE void write(const E* in, int64_t in_stride, E* out, int64_t out_stride) const {
    if (in_stride != 1 || out_stride != 1) {
      for_each_run(patches, count, patch, n, [&](int64_t first, int64_t last, bool masked) {
        for (int64_t i = first; i < last; ++i) out[i * out_stride] = masked ? value : in ? in[i * in_stride] : E(0);
      });
    } else if (!pattern) {
      for_each_run(patches, count, patch, n, [&](int64_t first, int64_t last, bool masked) {
        if (masked)
          fill(out + first, last - first, value);
        else if (in)
          __builtin_memcpy(out + first, in + first, size_t(last - first) * sizeof(E));
        else
          __builtin_memset(out + first, 0, size_t(last - first) * sizeof(E));
      });
    } else if (in) {
      for (int64_t i = 0; i < n; ++i) out[i] = E((in[i] & E(~pattern[i])) | (value & pattern[i]));
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = E(value & pattern[i]);
    }
  }
};

// The rows of a strip, `unit` elements a pixel (channels_last: all channels), in columns of at most kChunk elements.
template <class E, class F>
ENTMASK_INLINE void for_each_row(const Grid& g, const Item& item, const bool* patches, int64_t unit, E value, F&& f) {
  const int64_t patch = g.patch[2] * unit, width = g.size[2] * unit;
  if (patch * int64_t(sizeof(E)) >= kRunBytes) {
    const Row<E> row{patches, g.count[2], patch, width, nullptr, value};
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
    const Row<E> row{patches + x / patch, ceil_div(n, patch), patch, n, pattern, value};
    for (int64_t r = item.first; r < item.last; ++r) f(row, item.z(r), item.y(r), x);
  }
}

template <class E>
void apply(const ApplyParams& p, E fill_bits, E one_bits, int64_t begin, int64_t end) {
  const Grid& g = p.grid;
  const Strides &is = p.image_stride, &os = p.out_stride;
  const int64_t splits = strip_splits(g);
  const E* const image = static_cast<const E*>(p.image);
  E* const out = static_cast<E*>(p.out);
  const bool interleaved = is.c == 1 && os.c == 1 && is.w == p.channels && os.w == p.channels;
  const int64_t unit = interleaved ? p.channels : 1, planes = interleaved ? 1 : p.channels;
  const int64_t i_stride = interleaved ? 1 : is.w, o_stride = interleaved ? 1 : os.w;

  for (int64_t index = begin; index < end; ++index) {
    const Item item(g, splits, index);
    const bool* const patches = p.patches + item.strip * g.count[2];
    for (int64_t c = 0; c < planes; ++c) {
      for_each_row<E>(g, item, patches, unit, fill_bits, [&](const Row<E>& row, int64_t z, int64_t y, int64_t x) {
        row.write(image + item.n * is.n + c * is.c + z * is.d + y * is.h + x * i_stride, i_stride,
                  out + item.n * os.n + c * os.c + z * os.d + y * os.h + x * o_stride, o_stride);
      });
    }
    if (!p.mask) continue;
    auto pixel = [&](int64_t z, int64_t y, int64_t x) {
      return ((item.n * g.size[0] + z) * g.size[1] + y) * g.size[2] + x;
    };
    if (p.mask_is_bool) {
      for_each_row<uint8_t>(g, item, patches, 1, 1, [&](const Row<uint8_t>& row, int64_t z, int64_t y, int64_t x) {
        row.write(nullptr, 1, static_cast<uint8_t*>(p.mask) + pixel(z, y, x), 1);
      });
    } else {
      for_each_row<E>(g, item, patches, 1, one_bits, [&](const Row<E>& row, int64_t z, int64_t y, int64_t x) {
        row.write(nullptr, 1, static_cast<E*>(p.mask) + pixel(z, y, x), 1);
      });
    }
  }
}

}  // namespace

int64_t apply_mask_items(const ApplyParams& p) { return strip_items(p.grid, p.batch); }

void apply_mask(const ApplyParams& p, int64_t begin, int64_t end) {
  with_dtype(p.dtype, [&](auto s) {
    using S = typename decltype(s)::type;
    const uint64_t fill_bits = bits_of<S>(p.fill), one_bits = bits_of<S>(1.0);
    if constexpr (sizeof(S) == 8)
      apply<uint64_t>(p, fill_bits, one_bits, begin, end);
    else if constexpr (sizeof(S) == 4)
      apply<uint32_t>(p, uint32_t(fill_bits), uint32_t(one_bits), begin, end);
    else
      apply<uint16_t>(p, uint16_t(fill_bits), uint16_t(one_bits), begin, end);
  });
}

}  // namespace entmask::cpu::ENTMASK_ISA
