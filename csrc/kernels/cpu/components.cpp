// The largest component of each class: union-find over runs of pixels.
//
// A row is cut into runs of one class; a run is united with the runs of its class that it touches in the rows before.
// The root of a component is its first run, so that roots ascend with the components' first pixels and the first of
// equal components is found by walking them in order. Blobs have few runs: most of the time goes into reading the
// labels.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

struct Run {
  int32_t first, last;  // columns [first, last)
  int32_t label;
  int32_t parent;  // of the union-find: a run before it, or itself
};

// The largest component of a class, or root -1.
struct Best {
  int32_t root, pixels;
};

// What an image needs: there are at most as many runs as pixels.
struct ComponentsScratch {
  Run* runs;
  int32_t* row_end;  // runs up to the end of each row of pixels
  int32_t* pixels;   // [runs] of a component, at its root; else 0
  Best* best;        // [classes]
  size_t bytes;

  ComponentsScratch(const ComponentsParams& p, void* memory) {
    const int64_t rows = p.size[0] * p.size[1], pixel_count = rows * p.size[2];
    Scratch scratch(memory);
    runs = scratch.take<Run>(pixel_count);
    row_end = scratch.take<int32_t>(rows + 1);
    pixels = scratch.take<int32_t>(pixel_count);
    best = scratch.take<Best>(p.classes);
    bytes = scratch.bytes();
  }
};

ENTMASK_INLINE int32_t find(Run* runs, int32_t i) {
  while (runs[i].parent != i) i = runs[i].parent = runs[runs[i].parent].parent;
  return i;
}

// Of the bytes that are not 0, the first in memory.
ENTMASK_INLINE int64_t first_byte(uint64_t bytes) {
  return (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __builtin_ctzll(bytes) : __builtin_clzll(bytes)) / 8;
}

// The end of the run of row[x]'s label.
template <class L>
ENTMASK_INLINE int64_t run_end(const L* row, int64_t x, int64_t width) {
  const L label = row[x++];
  if constexpr (sizeof(L) == 1) {
    const uint64_t all = uint64_t(label) * 0x0101010101010101u;
    for (; x + 8 <= width; x += 8) {
      uint64_t eight;
      __builtin_memcpy(&eight, row + x, 8);
      if (eight != all) return x + first_byte(eight ^ all);
    }
  }
  while (x < width && row[x] == label) ++x;
  return x;
}

// Makes one component of two runs' components.
ENTMASK_INLINE void link(Run* runs, int32_t i, int32_t j) {
  const int32_t a = find(runs, i), b = find(runs, j);
  runs[a < b ? b : a].parent = a < b ? a : b;
}

// Unites the runs [i, end) of a row with those of its class in an earlier row, [j, to), that they touch. `diagonal`: a
// step along the row counts too. One walk along both rows, always on from the run that ends first: where the ends of
// runs cannot be foreseen, each branch on them would cost more than a step.
template <bool diagonal>
void unite(Run* runs, int32_t i, int32_t end, int32_t j, int32_t to) {
  while (i < end && j < to) {
    const Run &a = runs[i], &b = runs[j];
    const bool touch = (a.first < b.last + diagonal) & (b.first < a.last + diagonal);
    const int32_t a_last = a.last, b_last = b.last;
    if ((a.label == b.label) & touch) link(runs, i, j);
    // Where both end at once each touches the one behind the other.
    if (diagonal && a_last == b_last && i + 1 < end && runs[i + 1].first == b_last &&
        runs[i + 1].label == runs[j].label)
      link(runs, i + 1, j);
    i += diagonal ? a_last < b_last : a_last <= b_last;
    j += a_last >= b_last;
  }
}

// A run's pixels to 0. Noise has runs of a pixel or two, which a call of memset would cost more than they do.
template <class L>
ENTMASK_INLINE void clear(L* pixels, int64_t n) {
  pixels[0] = pixels[n - 1] = 0;
  if (n > 2) __builtin_memset(pixels + 1, 0, size_t(n - 2) * sizeof(L));
}

template <class L>
void keep_largest(const ComponentsParams& p, const ComponentsScratch& s, const L* labels, L* out) {
  const int64_t depth = p.size[0], height = p.size[1], width = p.size[2];
  Run* const runs = s.runs;
  int32_t count = 0;
  s.row_end[0] = 0;
  for (int64_t z = 0; z < depth; ++z)
    for (int64_t y = 0; y < height; ++y) {
      const int64_t row = z * height + y;
      const L* const line = labels + row * width;
      const int32_t begin = count;
      for (int64_t x = 0, end; x < width; x = end) {
        end = run_end(line, x, width);
        const int64_t label = int64_t(line[x]);
        runs[count] = {int32_t(x), int32_t(end), int32_t(label), count};
        s.pixels[count] = 0;
        count += (label > 0) & (label < p.classes);  // else it is written over
      }
      s.row_end[row + 1] = count;
      if (begin == count) continue;
      // The rows before that are a step of one or two axes away.
      auto with = [&](int64_t dz, int64_t dy) {
        const int64_t steps = dz + (dy ? 1 : 0), other = row - dz * height + dy;
        if (z < dz || y + dy < 0 || y + dy >= height || steps > p.connectivity) return;
        const auto walk = p.connectivity > steps ? unite<true> : unite<false>;
        walk(runs, begin, count, s.row_end[other], s.row_end[other + 1]);
      };
      with(0, -1);
      with(1, 0);
      with(1, -1);
      with(1, 1);
    }

  for (int32_t i = 0; i < count; ++i) {
    const int32_t root = runs[i].parent = runs[runs[i].parent].parent;  // parents lie before, and are roots by now
    s.pixels[root] += runs[i].last - runs[i].first;
  }
  for (int64_t k = 0; k < p.classes; ++k) s.best[k] = {-1, 0};
  for (int32_t i = 0; i < count; ++i) {  // no pixels but at a root
    Best& best = s.best[runs[i].label];
    if (s.pixels[i] > best.pixels) best = {i, s.pixels[i]};
  }
  __builtin_memcpy(out, labels, size_t(depth * height * width) * sizeof(L));
  for (int64_t row = 0; row < depth * height; ++row)
    for (int32_t i = s.row_end[row]; i < s.row_end[row + 1]; ++i) {
      const Run& run = runs[i];
      if (run.parent != s.best[run.label].root) clear(out + row * width + run.first, run.last - run.first);
    }
}

int64_t items(const ComponentsParams& p) { return p.batch; }

size_t scratch_bytes(const ComponentsParams& p) { return ComponentsScratch(p, nullptr).bytes; }

void run(const ComponentsParams& p, const Memory& memory, int64_t begin, int64_t end) {
  const ComponentsScratch scratch(p, memory.scratch);
  const int64_t pixels = p.size[0] * p.size[1] * p.size[2];
  for (int64_t n = begin; n < end; ++n) {
    if (p.label_dtype == LabelDtype::uint8)
      keep_largest(p, scratch, static_cast<const uint8_t*>(p.labels) + n * pixels,
                   static_cast<uint8_t*>(p.out) + n * pixels);
    else
      keep_largest(p, scratch, static_cast<const int64_t*>(p.labels) + n * pixels,
                   static_cast<int64_t*>(p.out) + n * pixels);
  }
}

}  // namespace

const Stage<ComponentsParams> components = {items, run, scratch_bytes, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
