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

constexpr int tile_threads = 512;
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

// Calls visit(key, inside) for the tile's elements, every lane of every warp each time.
template <typename F, typename Visit>
__device__ __forceinline__ void visit_keys(const TileArguments<F>& a, const Tile& t, const Visit& visit) {
  const F* scores = a.scores + t.row * a.rule.length + t.begin;
#pragma unroll 4
  for (int64_t base = 0; base < t.length; base += tile_threads) {
    const int64_t i = base + threadIdx.x;
    visit(i < t.length ? key_of(scores[i]) : Key<F>{0}, i < t.length);
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
__global__ void __launch_bounds__(tile_threads, 1) select_first_kernel(TileArguments<F> a) {
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
  visit_keys(a, t, [&](K key, bool inside) {
    tally(histogram, static_cast<unsigned>(key >> (8 * sizeof(K) - first_bits)), inside);
    tally(&passing, 0, inside && a.rule.passes(key, limit));
  });
  __syncthreads();
  const int64_t tile = t.row * a.tiling.tiles + t.index;
  if (threadIdx.x < first_bins) a.first[tile * first_bins + threadIdx.x] = histogram[threadIdx.x];
  if (threadIdx.x == 0) a.passing[tile] = passing;
}

// Counts the next digit of the tile's keys that share the digits of a bound.
template <typename F>
__device__ __forceinline__ void count_digit(const TileArguments<F>& a, const Tile& t, const Key<F> (&prefix)[2],
                                            int shift, unsigned (*histogram)[next_bins]) {
  using K = Key<F>;
  for (int i = threadIdx.x; i < a.tiling.slots * next_bins; i += tile_threads)
    histogram[i / next_bins][i % next_bins] = 0;
  __syncthreads();
  visit_keys(a, t, [&](K key, bool inside) {
    const unsigned digit = static_cast<unsigned>(key >> shift) & (next_bins - 1);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (s == a.tiling.slots) break;
      tally(histogram[s], digit, inside && ((key ^ prefix[s]) >> shift >> next_bits) == 0);
    }
  });
  __syncthreads();
}

template <typename F>
__device__ __forceinline__ void add_digit(const TileArguments<F>& a, int64_t row, Count* total,
                                          const unsigned (*histogram)[next_bins]) {
  for (int i = threadIdx.x; i < a.tiling.slots * next_bins; i += tile_threads) {
    const unsigned count = histogram[i / next_bins][i % next_bins];
    if (count != 0) atomicAdd(&total[row * a.tiling.slots * next_bins + i], static_cast<Count>(count));
  }
}

template <typename F>
__global__ void __launch_bounds__(tile_threads, 1) select_second_kernel(TileArguments<F> a) {
  using K = Key<F>;
  constexpr int shift = 8 * sizeof(K) - first_bits;
  __shared__ unsigned histogram[2][next_bins];
  __shared__ Count first[first_bins], passing;
  __shared__ LocateScratch scratch;
  __shared__ bool last;
  const Tile t = tile_of(a);

  if (threadIdx.x < first_bins) first[threadIdx.x] = 0;
  if (threadIdx.x == 0) passing = 0;
  __syncthreads();
  Count sum = 0;
  for (int64_t tile = threadIdx.x / first_bins; tile < a.tiling.tiles; tile += tile_threads / first_bins) {
    sum += a.first[(t.row * a.tiling.tiles + tile) * first_bins + threadIdx.x % first_bins];
  }
  atomicAdd(&first[threadIdx.x % first_bins], sum);
  for (int64_t tile = threadIdx.x; tile < a.tiling.tiles; tile += tile_threads) {
    atomicAdd(&passing, static_cast<Count>(a.passing[t.row * a.tiling.tiles + tile]));
  }
  __syncthreads();

  const Chosen c = chosen(a.rule, t.row, a.rule.template limit<F>(t.row), static_cast<int64_t>(passing));
  K prefix[2] = {0, 0};
  int64_t less[2] = {0, 0};
  if (c.k > 0) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (s == a.tiling.slots) break;
      const Located at = locate(first, first_bins, bound_rank(a.rule, c, s), &scratch);
      prefix[s] = static_cast<K>(at.bin) << shift;
      less[s] = at.less;
      __syncthreads();
    }
    count_digit(a, t, prefix, shift - next_bits, histogram);
    add_digit(a, t.row, a.second, histogram);
  }
  if (!is_last_block(&a.arrived[t.row * 2], a.tiling.tiles, &last)) return;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (s == a.tiling.slots || c.k == 0) break;
    const Located at = locate(a.second + (t.row * a.tiling.slots + s) * next_bins, next_bins,
                              bound_rank(a.rule, c, s) - less[s], &scratch);
    prefix[s] |= static_cast<K>(at.bin) << (shift - next_bits);
    less[s] += at.less;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    a.state[t.row].chosen = c;
    for (int s = 0; s < 2; ++s) a.state[t.row].bound[s] = {prefix[s], less[s], 0};
  }
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
__global__ void __launch_bounds__(tile_threads, 1) select_third_kernel(TileArguments<F> a) {
  using K = Key<F>;
  constexpr int shift = 8 * sizeof(K) - first_bits - 2 * next_bits;  // 0 or 32
  __shared__ unsigned histogram[2][next_bins];
  __shared__ LocateScratch scratch;
  __shared__ RadixScratch radix;
  __shared__ bool last;
  const Tile t = tile_of(a);
  const int slots = a.tiling.slots;
  const RowState<K> state = a.state[t.row];
  const Chosen c = state.chosen;
  if (c.k > 0) {
    const K prefix[2] = {state.bound[0].key, state.bound[1].key};
    count_digit(a, t, prefix, shift, histogram);
    add_digit(a, t.row, a.third, histogram);
    if constexpr (shift == 0) {
      for (int i = threadIdx.x; i < slots * next_bins; i += tile_threads) {
        const int s = i / next_bins, bin = i % next_bins;
        a.tile_third[((t.row * slots + s) * a.tiling.tiles + t.index) * next_bins + bin] = histogram[s][bin];
      }
    }
  }
  if (!is_last_block(&a.arrived[t.row * 2 + 1], a.tiling.tiles, &last)) return;

  Ranked<K> bound[2] = {state.bound[0], state.bound[1]};
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (s == slots || c.k == 0) break;
    const int64_t rank = bound_rank(a.rule, c, s);
    const Located at = locate(a.third + (t.row * slots + s) * next_bins, next_bins, rank - bound[s].less, &scratch);
    bound[s] = {bound[s].key | static_cast<K>(at.bin) << shift, bound[s].less + at.less, at.count};
    int64_t* ahead = a.ahead + (t.row * slots + s) * a.tiling.tiles;
    if constexpr (shift == 0) {
      for (int64_t tile = threadIdx.x; tile < a.tiling.tiles; tile += tile_threads) {
        ahead[tile] = a.tile_third[((t.row * slots + s) * a.tiling.tiles + tile) * next_bins + at.bin];
      }
    } else {
      const F* scores = a.scores + t.row * a.rule.length;
      const auto key_at = [&](int64_t i) { return key_of(scores[i]); };
      bound[s] = radix_select<K>(key_at, a.rule.length, bound[s].key, shift, bound[s].less, rank, &radix);
      for (int64_t tile = threadIdx.x / 32; tile < a.tiling.tiles; tile += tile_threads / 32) {
        const int64_t begin = tile * a.tiling.tile, end = begin + a.tiling.tile;
        int64_t equal = 0;
        for (int64_t i = begin + (threadIdx.x & 31); i < end && i < a.rule.length; i += 32) {
          equal += key_at(i) == bound[s].key;
        }
        equal = sum_lanes(equal);
        if ((threadIdx.x & 31) == 0) ahead[tile] = equal;
      }
    }
    __syncthreads();
    if (threadIdx.x < 32) add_ahead(ahead, a.tiling.tiles);
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    constexpr K top = static_cast<K>(~K{0});
    a.state[t.row].bounds = c.k > 0 ? bounds_of(a.rule, c, bound[0], bound[1]) : Bounds<K>{top, top, 0, 0, 0};
  }
}

template <typename F>
__global__ void __launch_bounds__(tile_threads, 1) select_mark_kernel(TileArguments<F> a) {
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
  mark([&](int64_t i) { return key_of(scores[i]); }, t.length, bounds, low, high, a.patches + first, &scratch);
}

}  // namespace entmask::cuda
