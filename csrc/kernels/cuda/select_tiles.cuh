// Selection in rows too long for one block: four launches over tiles of a row, an 8-bit and two 12-bit digits of the
// radix select, then the mask.
//
//   1  counts the first digit of each tile (no atomics: nothing has been zeroed yet) and zeroes what the others add
//   into 2  adds these up for itself, counts the second digit of the keys that share the first; the row's last block
//   locates it 3  the same for the third digit; the last block now knows 32-bit keys whole, and finds the rest of
//   64-bit keys alone
//      (double is for checking, not for speed). It leaves the bounds and the ties ahead of each tile
//   4  writes the mask
// Counts that several blocks add to are integers, so that the order does not show.
#pragma once

#include "select.cuh"

namespace entmask::cuda {

constexpr int tile_threads = 512, tile_blocks = 2;  // on a multiprocessor, that the registers must leave room for
constexpr int tile_ahead = 8;                       // keys that a thread loads before it looks at the first
constexpr int64_t tile_elements = 8192, tiles_limit = 128;
constexpr int first_bits = 8, next_bits = 12;
constexpr int first_bins = 1 << first_bits, next_bins = 1 << next_bits;

using Count = unsigned long long;

template <typename K>
struct RowState {
  Chosen chosen;
  Ranked<K> bound[2];  // the key's digits so far, those less than it, and (at the end) its equals
  Bounds<K> bounds;
};

struct Tiling {
  int64_t rows, tile, tiles;
  int slots;  // bounds that have to be found

  explicit Tiling(const SelectParams& p) : rows(p.rows) {
    tile = ceil_div(p.length, tiles_limit);
    if (tile < tile_elements) tile = tile_elements;
    tile = ceil_div(tile, 32) * 32;
    tiles = ceil_div(p.length, tile);
    slots = p.hinted > 0 && !p.lowest ? 2 : 1;
  }
};

template <typename F>
struct TileArguments {
  const F* scores;  // [rows, P]
  bool* patches;    // [rows, P]
  Rule rule;
  Tiling tiling;
  Divider tiles;
  RowState<Key<F>>* state;  // [rows]
  Count* second;            // [rows, slots, next_bins]
  Count* third;             // [rows, slots, next_bins]
  int64_t* ahead;           // [rows, slots, tiles]: ties ahead of the tile
  unsigned* first;          // [rows, tiles, first_bins]
  unsigned* passing;        // [rows, tiles]
  unsigned* tile_third;     // [rows, slots, tiles, next_bins]; 32-bit keys only
  unsigned* arrived;        // [rows, 2]
};

// Lays the arrays out one after the other from `base`; returns the bytes that they take.
template <typename F>
size_t lay_out(TileArguments<F>* a, char* base) {
  const Tiling& t = a->tiling;
  size_t bytes = 0;
  const auto take = [&](auto** array, int64_t count) {
    *array = reinterpret_cast<std::remove_reference_t<decltype(*array)>>(base + bytes);
    bytes += (static_cast<size_t>(count) * sizeof(**array) + 255) / 256 * 256;
  };
  take(&a->state, t.rows);
  take(&a->second, t.rows * t.slots * next_bins);
  take(&a->third, t.rows * t.slots * next_bins);
  take(&a->ahead, t.rows * t.slots * t.tiles);
  take(&a->first, t.rows * t.tiles * first_bins);
  take(&a->passing, t.rows * t.tiles);
  take(&a->arrived, t.rows * 2);
  if (sizeof(F) == 4) take(&a->tile_third, t.rows * t.slots * t.tiles * next_bins);
  return bytes;
}

struct Tile {
  int64_t row, begin, length;
  int32_t index;
};
template <typename F>
__device__ __forceinline__ Tile tile_of(const TileArguments<F>& a) {
  Tile t;
  t.row = a.tiles.split(blockIdx.x, &t.index);
  t.begin = t.index * a.tiling.tile;
  t.length = a.rule.length - t.begin < a.tiling.tile ? a.rule.length - t.begin : a.tiling.tile;
  return t;
}

// Calls visit(key) for the tile's elements.
template <typename F, typename Visit>
__device__ __forceinline__ void visit_keys(const TileArguments<F>& a, const Tile& t, const Visit& visit) {
  const F* scores = a.scores + t.row * a.rule.length + t.begin;
#pragma unroll 1
  for (int64_t base = threadIdx.x; base < t.length; base += tile_threads * tile_ahead) {
    Key<F> key[tile_ahead];
    read_keys(key, scores, base, tile_threads, t.length);
#pragma unroll
    for (int u = 0; u < tile_ahead; ++u) {
      if (key[u] != 0) visit(key[u]);
    }
  }
}

// Counts this block in; true in all threads of the last block of the row, which then sees what the others wrote.
__device__ __forceinline__ bool is_last_block(unsigned* arrived, int64_t blocks, bool* last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *last = atomicAdd(arrived, 1u) == static_cast<unsigned>(blocks) - 1;
  __syncthreads();
  if (*last) __threadfence();
  return *last;
}

template <typename F>
__global__ void __launch_bounds__(tile_threads, tile_blocks) select_first_kernel(TileArguments<F> a) {
  wait_for_predecessor();
  using K = Key<F>;
  __shared__ unsigned histogram[first_bins];
  __shared__ unsigned passing;
  const Tile t = tile_of(a);
  const int64_t each = (a.tiling.slots * next_bins + a.tiling.tiles - 1) / a.tiling.tiles, zero = t.index * each;
  for (int64_t i = zero + threadIdx.x; i < zero + each && i < a.tiling.slots * next_bins; i += tile_threads) {
    a.second[t.row * a.tiling.slots * next_bins + i] = 0;
    a.third[t.row * a.tiling.slots * next_bins + i] = 0;
  }
  if (t.index == 0 && threadIdx.x < 2) a.arrived[t.row * 2 + threadIdx.x] = 0;
  if (threadIdx.x < first_bins) histogram[threadIdx.x] = 0;
  if (threadIdx.x == 0) passing = 0;
  __syncthreads();
  const K limit = a.rule.template limit<F>(t.row);
  unsigned own_passing = 0;
  visit_keys(a, t, [&](K key) {
    tally(histogram, static_cast<unsigned>(key >> (8 * sizeof(K) - first_bits)));
    if (!a.rule.by_ratio) own_passing += a.rule.passes(key, limit);
  });
  if (!a.rule.by_ratio) atomicAdd(&passing, own_passing);
  __syncthreads();
  const int64_t tile = t.row * a.tiling.tiles + t.index;
  if (threadIdx.x < first_bins) a.first[tile * first_bins + threadIdx.x] = histogram[threadIdx.x];
  if (threadIdx.x == 0) a.passing[tile] = passing;
}

// Counts the next digit of the tile's keys that share the digits of a bound. Ends with a barrier.
template <typename F>
__device__ __forceinline__ void count_digit(const TileArguments<F>& a, const Tile& t, const Ranked<Key<F>>* bound,
                                            int shift, unsigned* histogram) {
  using K = Key<F>;
  const int slots = a.tiling.slots;
  for (int i = threadIdx.x; i < slots * next_bins; i += tile_threads) histogram[i] = 0;
  __syncthreads();
  const K prefix = bound[0].key, second = bound[1].key;
  visit_keys(a, t, [&](K key) {
    const unsigned digit = static_cast<unsigned>(key >> shift) & (next_bins - 1);
    if (((key ^ prefix) >> shift >> next_bits) == 0) tally(histogram, digit);
    if (slots == 2 && ((key ^ second) >> shift >> next_bits) == 0) tally(histogram + next_bins, digit);
  });
  __syncthreads();
}

template <typename F>
__device__ __forceinline__ void add_digit(const TileArguments<F>& a, int64_t row, Count* total,
                                          const unsigned* histogram) {
  const int bins = a.tiling.slots * next_bins;
  for (int i = threadIdx.x; i < bins; i += tile_threads) {
    if (histogram[i] != 0) atomicAdd(&total[row * bins + i], static_cast<Count>(histogram[i]));
  }
}

template <typename F>
__global__ void __launch_bounds__(tile_threads, tile_blocks) select_second_kernel(TileArguments<F> a) {
  wait_for_predecessor();
  using K = Key<F>;
  constexpr int shift = 8 * sizeof(K) - first_bits, halves = tile_threads / first_bins;
  static_assert(halves == 2, "two halves of a block are added up");
  DYNAMIC_SHARED(unsigned, histogram);  // [slots, next_bins]
  __shared__ Count first[halves][first_bins];
  __shared__ int64_t passing;
  __shared__ Ranked<K> bound[2];
  __shared__ LocateScratch scratch;
  __shared__ bool last;
  const Tile t = tile_of(a);
  const int slots = a.tiling.slots, tiles = static_cast<int>(a.tiling.tiles), thread = static_cast<int>(threadIdx.x);

  // Each half of the block takes every other tile.
  const unsigned* const counts = a.first + t.row * tiles * first_bins + thread % first_bins;
  Count sum = 0;
#pragma unroll 4
  for (int tile = thread / first_bins; tile < tiles; tile += halves) sum += counts[tile * first_bins];
  first[thread / first_bins][thread % first_bins] = sum;
  if (thread < 2) bound[thread] = {0, 0, 0};
  if (!a.rule.by_ratio && thread < 32) {
    int64_t own = 0;
    for (int tile = thread; tile < tiles; tile += 32) own += a.passing[t.row * tiles + tile];
    own = sum_lanes(own);
    if (thread == 0) passing = own;
  }
  __syncthreads();
  if (thread < first_bins) first[0][thread] += first[1][thread];
  __syncthreads();

  const Chosen c = chosen(a.rule, t.row, a.rule.template limit<F>(t.row), a.rule.by_ratio ? 0 : passing);
  if (c.k > 0) {
#pragma unroll 1
    for (int s = 0; s < slots; ++s) {
      const Located at = locate(first[0], first_bins, bound_rank(a.rule, c, s), &scratch);
      if (thread == 0) bound[s] = {static_cast<K>(at.bin) << shift, at.less, at.count};
      __syncthreads();
    }
    count_digit(a, t, bound, shift - next_bits, histogram);
    add_digit(a, t.row, a.second, histogram);
  }
  if (!is_last_block(&a.arrived[t.row * 2], tiles, &last)) return;
#pragma unroll 1
  for (int s = 0; s < slots && c.k > 0; ++s) {
    const Located at = locate(a.second + (t.row * slots + s) * next_bins, next_bins,
                              bound_rank(a.rule, c, s) - bound[s].less, &scratch);
    if (thread == 0) {
      bound[s].key |= static_cast<K>(at.bin) << (shift - next_bits);
      bound[s].less += at.less;
    }
    __syncthreads();
  }
  if (thread == 0) a.state[t.row].chosen = c;
  if (thread < 2) a.state[t.row].bound[thread] = bound[thread];
}

// The equals of a bound that lie ahead of each tile. `count` holds those in the tiles; one warp adds them up.
__device__ __forceinline__ void add_ahead(int64_t* count, int64_t tiles) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  int64_t before = 0;
  for (int64_t base = 0; base < tiles; base += 32) {
    const int64_t own = base + lane < tiles ? count[base + lane] : 0;
    int64_t upto = own;
    for (int distance = 1; distance < 32; distance *= 2) {
      const int64_t below = __shfl_up_sync(full_warp, upto, distance);
      if (lane >= distance) upto += below;
    }
    if (base + lane < tiles) count[base + lane] = before + upto - own;
    before += __shfl_sync(full_warp, upto, 31);
  }
}

template <typename F>
__global__ void __launch_bounds__(tile_threads, tile_blocks) select_third_kernel(TileArguments<F> a) {
  wait_for_predecessor();
  using K = Key<F>;
  constexpr int shift = 8 * sizeof(K) - first_bits - 2 * next_bits;  // 0 or 32
  DYNAMIC_SHARED(unsigned, histogram);                               // [slots, next_bins]
  __shared__ Ranked<K> bound[2];
  __shared__ LocateScratch scratch;
  __shared__ RadixScratch radix;
  __shared__ bool last;
  const Tile t = tile_of(a);
  const int slots = a.tiling.slots, tiles = static_cast<int>(a.tiling.tiles), thread = static_cast<int>(threadIdx.x);
  const Chosen c = a.state[t.row].chosen;
  if (thread < 2) bound[thread] = a.state[t.row].bound[thread];
  if (c.k > 0) {
    __syncthreads();
    count_digit(a, t, bound, shift, histogram);
    add_digit(a, t.row, a.third, histogram);
    if constexpr (shift == 0) {
      for (int i = thread; i < slots * next_bins; i += tile_threads) {
        const int s = i / next_bins, bin = i % next_bins;
        a.tile_third[((t.row * slots + s) * tiles + t.index) * next_bins + bin] = histogram[i];
      }
    }
  }
  if (!is_last_block(&a.arrived[t.row * 2 + 1], tiles, &last)) return;

#pragma unroll 1
  for (int s = 0; s < slots && c.k > 0; ++s) {
    const int64_t rank = bound_rank(a.rule, c, s);
    const Located at = locate(a.third + (t.row * slots + s) * next_bins, next_bins, rank - bound[s].less, &scratch);
    Ranked<K> found{bound[s].key | static_cast<K>(at.bin) << shift, bound[s].less + at.less, at.count};
    int64_t* ahead = a.ahead + (t.row * slots + s) * tiles;
    if constexpr (shift == 0) {
      for (int tile = thread; tile < tiles; tile += tile_threads) {
        ahead[tile] = a.tile_third[((t.row * slots + s) * tiles + tile) * next_bins + at.bin];
      }
    } else {
      const F* scores = a.scores + t.row * a.rule.length;
      found = radix_select(scores, a.rule.length, found.key, shift, found.less, rank, &radix);
      for (int tile = thread / 32; tile < tiles; tile += tile_threads / 32) {
        const int64_t begin = tile * a.tiling.tile, end = begin + a.tiling.tile;
        int64_t equal = 0;
        for (int64_t i = begin + (thread & 31); i < end && i < a.rule.length; i += 32) {
          equal += key_of(scores[i]) == found.key;
        }
        equal = sum_lanes(equal);
        if ((thread & 31) == 0) ahead[tile] = equal;
      }
    }
    __syncthreads();
    if (thread == 0) bound[s] = found;
    if (thread < 32) add_ahead(ahead, tiles);
    __syncthreads();
  }
  if (thread == 0) {
    constexpr K top = static_cast<K>(~K{0});
    a.state[t.row].bounds = c.k > 0 ? bounds_of(a.rule, c, bound[0], bound[1]) : Bounds<K>{top, top, 0, 0, 0};
  }
}

template <typename F>
__global__ void __launch_bounds__(tile_threads, tile_blocks) select_mark_kernel(TileArguments<F> a) {
  wait_for_predecessor();
  __shared__ MarkScratch scratch;
  const Tile t = tile_of(a);
  const Bounds<Key<F>> bounds = a.state[t.row].bounds;
  int64_t low = 0, high = 0;
  if (a.state[t.row].chosen.k > 0) {
    const int64_t* ahead = a.ahead + t.row * a.tiling.slots * a.tiling.tiles + t.index;
    low = ahead[0];  // ties that do not count in a bound's window do no harm
    high = ahead[(a.tiling.slots - 1) * a.tiling.tiles];
  }
  const int64_t first = t.row * a.rule.length + t.begin;
  const F* scores = a.scores + first;
  mark<tile_ahead>(scores, t.length, bounds, low, high, a.patches + first, &scratch);
}

}  // namespace entmask::cuda
