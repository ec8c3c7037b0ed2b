// The largest component of each class: union-find over runs of pixels, found and compared 64 pixels at a time.
//
// A row is kept as bits: bit x of plane j is bit j of the class of pixel x; background and labels that are no class
// have none. With the planes a_j and b_j of two rows, pixels of one class are
//
//     same = foreground & ~((a_0 ^ b_0) | (a_1 ^ b_1) | ...)
//
// and each piece of `same` within one run is a pair of runs that touch. So 64 pixels without a border cost a few
// operations for each bit of the class, and only pairs that are to be united are looked at one by one. The root of a
// component is its first run, so that roots ascend with the components' first pixels and the first of equal components
// is found by walking them in order.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

constexpr int64_t word_pixels = 64;

struct Run {
  int32_t first, last;  // columns [first, last)
  int32_t label;
};

// The largest component of a class, or root -1.
struct Best {
  int32_t root, pixels;
};

// A row of pixels, in words.
struct Row {
  const uint64_t* planes;  // [planes, words + 1]; the word behind a plane, and that before the first, is 0
  const uint64_t* starts;  // [words] the first pixels of runs
  const int32_t* before;   // [words] runs of the image before the word
};

// What an image needs: there are at most as many runs as pixels.
struct ComponentsScratch {
  int64_t words;  // a row
  int planes, byte_rows;
  uint8_t* classes;  // [byte_rows, 64 words] of a row: the low bytes, then the high ones
  uint64_t* bits;    // [rows, planes, words + 1]
  uint64_t* starts;  // [rows, words]
  int32_t* before;   // [rows, words]
  int32_t* row_end;  // runs up to the end of each row of pixels
  Run* runs;
  int32_t* parent;  // [runs] of the union-find: a run before it, or itself
  int32_t* pixels;  // [runs] of a component, at its root; else 0
  Best* best;       // [classes]
  size_t bytes;

  ComponentsScratch(const ComponentsParams& p, void* memory) {
    const int64_t rows = p.size[0] * p.size[1], pixel_count = rows * p.size[2];
    words = ceil_div(p.size[2], word_pixels);
    planes = 64 - __builtin_clzll(uint64_t(p.classes - 1));
    byte_rows = planes > 8 ? 2 : 1;
    Scratch scratch(memory);
    classes = scratch.take<uint8_t>(byte_rows * words * word_pixels);
    bits = scratch.take<uint64_t>(1 + rows * planes * (words + 1)) + 1;
    starts = scratch.take<uint64_t>(rows * words);
    before = scratch.take<int32_t>(rows * words);
    row_end = scratch.take<int32_t>(rows + 1);
    runs = scratch.take<Run>(pixel_count);
    parent = scratch.take<int32_t>(pixel_count);
    pixels = scratch.take<int32_t>(pixel_count);
    best = scratch.take<Best>(p.classes);
    bytes = scratch.bytes();
  }
  uint64_t* planes_of(int64_t row) const { return bits + row * planes * (words + 1); }
  Row row(int64_t row) const { return {planes_of(row), starts + row * words, before + row * words}; }
};

ENTMASK_INLINE int32_t find(int32_t* parent, int32_t i) {
  while (parent[i] != i) i = parent[i] = parent[parent[i]];
  return i;
}

// Makes one component of two runs' components.
ENTMASK_INLINE void link(int32_t* parent, int32_t i, int32_t j) {
  if (parent[i] == parent[j]) return;
  const int32_t a = find(parent, i), b = find(parent, j);
  parent[a < b ? b : a] = a < b ? a : b;
}

// The run of a pixel of the foreground.
ENTMASK_INLINE int32_t run_at(const Row& row, int64_t x) {
  const int64_t word = x / word_pixels;
  const uint64_t upto = ~uint64_t{0} >> (word_pixels - 1 - x % word_pixels);
  return row.before[word] + __builtin_popcountll(row.starts[word] & upto) - 1;
}

// Calls fn(x) for each bit of a word, ascending.
template <class F>
ENTMASK_INLINE void each_bit(uint64_t bits, F&& fn) {
  for (; bits != 0; bits &= bits - 1) fn(__builtin_ctzll(bits));
}

// Unites the runs of row a with those of their class in an earlier row b that they touch. `diagonal`: a step along the
// row counts too.
template <bool diagonal>
void unite(const ComponentsScratch& s, const Row& a, const Row& b) {
  for (int64_t w = 0; w < s.words; ++w) {
    uint64_t foreground = 0, differ = 0, differ_ahead = 0, differ_behind = 0;
    for (int j = 0; j < s.planes; ++j) {
      const int64_t i = j * (s.words + 1) + w;
      const uint64_t mine = a.planes[i], its = b.planes[i];
      foreground |= mine;
      differ |= mine ^ its;
      if constexpr (diagonal) {
        differ_ahead |= mine ^ (its >> 1 | b.planes[i + 1] << 63);
        differ_behind |= mine ^ (its << 1 | b.planes[i - 1] >> 63);
      }
    }
    const int64_t x = w * word_pixels;
    const uint64_t same = foreground & ~differ;
    // The first pixel of each piece; a second piece of the same two runs does no harm.
    each_bit(same & (~(same << 1) | a.starts[w]),
             [&](int bit) { link(s.parent, run_at(a, x + bit), run_at(b, x + bit)); });
    if constexpr (diagonal) {
      // Where `same` holds at x, or at x + 1 (x - 1), its piece has united these two runs.
      each_bit(foreground & ~(differ_ahead | same | same >> 1),
               [&](int bit) { link(s.parent, run_at(a, x + bit), run_at(b, x + bit + 1)); });
      each_bit(foreground & ~(differ_behind | same | same << 1),
               [&](int bit) { link(s.parent, run_at(a, x + bit), run_at(b, x + bit - 1)); });
    }
  }
}

// Bit j of 64 bytes, in their order.
ENTMASK_INLINE uint64_t bits_of(const uint8_t* bytes, int j) {
#if defined(__AVX512BW__)
  return _mm512_test_epi8_mask(_mm512_loadu_si512(bytes), _mm512_set1_epi8(char(1 << j)));
#elif defined(__AVX2__)
  const auto half = [&](int i) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes) + i);
    return uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(v, 7 - j))));  // the highest bit of each byte
  };
  return half(0) | half(1) << 32;
#elif defined(__SSE2__)
  uint64_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + i);
    word |= uint64_t(uint32_t(_mm_movemask_epi8(_mm_slli_epi16(v, 7 - j)))) << 16 * i;
  }
  return word;
#else
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    __builtin_memcpy(&eight, bytes + 8 * i, 8);
    if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__) eight = __builtin_bswap64(eight);
    // Byte k of the eight, 0 or 1, comes out as bit k of the highest byte: k * 8 + 56 - k * 7.
    word |= ((eight >> j & 0x0101010101010101u) * 0x0102040810204080u >> 56) << 8 * i;
  }
  return word;
#endif
}

// A byte of each label that is a class, else 0. Whether one is not 0.
template <class L>
ENTMASK_INLINE bool class_bytes(const L* __restrict labels, int64_t n, uint64_t last_class, int shift,
                                uint8_t* __restrict out) {
  const L last = last_class < L(-1) ? L(last_class) : L(-1);
  uint8_t any = 0;
  for (int64_t x = 0; x < n; ++x) any |= out[x] = labels[x] <= last ? uint8_t(labels[x] >> shift) : uint8_t{0};
  return any != 0;
}

// The planes of a row. Whether it has foreground.
template <class L>
bool read_row(const ComponentsParams& p, const ComponentsScratch& s, const L* line, uint64_t* planes) {
  const int64_t padded = s.words * word_pixels;
  bool foreground = class_bytes(line, p.size[2], uint64_t(p.classes - 1), 0, s.classes);
  if (s.byte_rows > 1) {
    if constexpr (sizeof(L) > 1)
      foreground |= class_bytes(line, p.size[2], uint64_t(p.classes - 1), 8, s.classes + padded);
  }
  if (!foreground) {
    __builtin_memset(planes, 0, size_t(s.planes * (s.words + 1)) * sizeof(uint64_t));
    return false;
  }
  for (int j = 0; j < s.planes; ++j) {
    const uint8_t* const bytes = s.classes + j / 8 * padded;
    for (int64_t w = 0; w < s.words; ++w) planes[j * (s.words + 1) + w] = bits_of(bytes + w * word_pixels, j % 8);
    planes[j * (s.words + 1) + s.words] = 0;
  }
  return true;
}

// Appends the runs of a row to the `count` before; how many there are then.
template <class L>
int32_t find_runs(const ComponentsParams& p, const ComponentsScratch& s, const L* line, int64_t row, int32_t count) {
  const uint64_t* const planes = s.planes_of(row);
  int32_t ranked = count;
  int64_t first = 0;
  // Of the background too, but that is written over.
  const auto end_run = [&](int64_t last) {
    const int64_t label = int64_t(line[first]);
    s.runs[count] = {int32_t(first), int32_t(last), int32_t(label)};
    s.parent[count] = count;
    s.pixels[count] = 0;
    count += (label > 0) & (label < p.classes);
    first = last;
  };
  for (int64_t w = 0; w < s.words; ++w) {
    uint64_t foreground = 0, changes = 0;
    for (int j = 0; j < s.planes; ++j) {
      const int64_t i = j * (s.words + 1) + w;
      foreground |= planes[i];
      changes |= planes[i] ^ (planes[i] << 1 | planes[i - 1] >> 63);
    }
    s.starts[row * s.words + w] = changes & foreground;
    s.before[row * s.words + w] = ranked;
    ranked += __builtin_popcountll(changes & foreground);
    if (w == 0) changes &= ~uint64_t{1};
    each_bit(changes, [&](int bit) { end_run(w * word_pixels + bit); });
  }
  if (first < p.size[2]) end_run(p.size[2]);
  return count;
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
  int32_t count = 0;
  s.row_end[0] = 0;
  for (int64_t z = 0; z < depth; ++z)
    for (int64_t y = 0; y < height; ++y) {
      const int64_t row = z * height + y;
      const L* const line = labels + row * width;
      const bool foreground = read_row(p, s, line, s.planes_of(row));
      if (foreground) count = find_runs(p, s, line, row, count);
      s.row_end[row + 1] = count;
      if (!foreground) continue;
      // The rows before that are a step of one or two axes away.
      auto with = [&](int64_t dz, int64_t dy) {
        const int64_t steps = dz + (dy ? 1 : 0), other = row - dz * height + dy;
        if (z < dz || y + dy < 0 || y + dy >= height || steps > p.connectivity) return;
        (p.connectivity > steps ? unite<true> : unite<false>)(s, s.row(row), s.row(other));
      };
      with(0, -1);
      with(1, 0);
      with(1, -1);
      with(1, 1);
    }

  for (int32_t i = 0; i < count; ++i) {
    const int32_t root = s.parent[i] = s.parent[s.parent[i]];  // parents lie before, and are roots by now
    s.pixels[root] += s.runs[i].last - s.runs[i].first;
  }
  for (int64_t k = 0; k < p.classes; ++k) s.best[k] = {-1, 0};
  for (int32_t i = 0; i < count; ++i) {  // no pixels but at a root
    Best& best = s.best[s.runs[i].label];
    if (s.pixels[i] > best.pixels) best = {i, s.pixels[i]};
  }
  __builtin_memcpy(out, labels, size_t(depth * height * width) * sizeof(L));
  for (int64_t row = 0; row < depth * height; ++row)
    for (int32_t i = s.row_end[row]; i < s.row_end[row + 1]; ++i) {
      const Run& run = s.runs[i];
      if (s.parent[i] != s.best[run.label].root) clear(out + row * width + run.first, run.last - run.first);
    }
}

int64_t items(const ComponentsParams& p) { return p.batch; }

size_t scratch_bytes(const ComponentsParams& p) { return ComponentsScratch(p, nullptr).bytes; }

void run(const ComponentsParams& p, const Memory& memory, int64_t begin, int64_t end) {
  const ComponentsScratch scratch(p, memory.scratch);
  const int64_t pixels = p.size[0] * p.size[1] * p.size[2];
  __builtin_memset(scratch.classes, 0, size_t(scratch.byte_rows * scratch.words * word_pixels));
  scratch.bits[-1] = 0;
  for (int64_t n = begin; n < end; ++n) {
    if (p.label_dtype == LabelDtype::uint8)
      keep_largest(p, scratch, static_cast<const uint8_t*>(p.labels) + n * pixels,
                   static_cast<uint8_t*>(p.out) + n * pixels);
    else
      keep_largest(p, scratch, static_cast<const uint64_t*>(p.labels) + n * pixels,
                   static_cast<uint64_t*>(p.out) + n * pixels);
  }
}

}  // namespace

const Stage<ComponentsParams> components = {items, run, scratch_bytes, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
