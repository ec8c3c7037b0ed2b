// Which patches of a row are masked: what all the selection kernels share.
//
// Scores become unsigned keys in the same order. The k highest (lowest) less the hint are, in key order with ties in
// index order, the keys between two bounds, each with a window of ties: a bound is the key at a known rank (radix
// select finds it), and an element on the bound counts its equals at lower indices ("before") to see whether it is in
// the window.
#pragma once

#include "launch.h"
#include "math.cuh"

namespace entmask::cuda {

constexpr int64_t rank_limit = 512;    // patches a row up to which every element counts its own rank
constexpr size_t block_bytes = 40960;  // shared memory for the keys of a row that one block selects from
constexpr int digit_bits = 8, digit_bins = 1 << digit_bits;  // of the radix select in one block

template <typename F>
using Key = std::conditional_t<sizeof(F) == 8, uint64_t, uint32_t>;

// Keys order as scores do: NaN above +inf, -0 equal to +0. No score has key 0.
template <typename F>
__device__ __forceinline__ Key<F> key_of(F score) {
  using K = Key<F>;
  constexpr K sign = K{1} << (8 * sizeof(F) - 1);
  if (score != score) return ~K{0};
  const F positive_zero = score + F{0};
  K bits;
  memcpy(&bits, &positive_zero, sizeof(F));
  const K negative = K{0} - (bits >> (8 * sizeof(F) - 1));  // all bits, or none
  return bits ^ (negative | sign);
}
// Of what may be a key already.
template <typename V>
__device__ __forceinline__ Key<V> as_key(V v) {
  if constexpr (std::is_floating_point_v<V>) {
    return key_of(v);
  } else {
    return v;
  }
}

struct Rule {
  Number ratio, min_score;
  int64_t length, k, min_patches, hinted;
  bool by_ratio, lowest;

  explicit Rule(const SelectParams& p)
      : ratio(p.ratio),
        min_score(p.min_score),
        length(p.length),
        k(p.k),
        min_patches(p.min_patches),
        hinted(p.hinted),
        by_ratio(p.by_ratio),
        lowest(p.lowest) {}

  // The key of min_score.
  template <typename F>
  __device__ __forceinline__ Key<F> limit(int64_t row) const {
    return by_ratio ? 0 : key_of(static_cast<F>(read_number(min_score, row)));
  }
  template <typename K>
  __device__ __forceinline__ bool passes(K key, K limit) const {
    return lowest ? key <= limit : key >= limit;
  }
};

// How many a ratio on the device selects.
__device__ __forceinline__ int64_t count_of_ratio(const Rule& rule, int64_t row) {
  const double ratio = read_number(rule.ratio, row), length = static_cast<double>(rule.length);
  if (!(ratio > 0)) return 0;
  if (rule.ratio.dtype == Dtype::int64) return static_cast<int64_t>(ratio < length ? ratio : length);
  constexpr double tolerance = 1e-6;  // ratio * P of a whole number of patches may fall just short of it
  const int64_t k = static_cast<int64_t>(rounded_product(ratio < 1 ? ratio : 1, length) + tolerance);
  return k > 1 ? k : 1;
}

// How many are selected, and how many of these are taken out again.
struct Chosen {
  int64_t k, hinted;
};
template <typename K>
__device__ __forceinline__ Chosen chosen(const Rule& rule, int64_t row, K limit, int64_t passing) {
  constexpr K nan = static_cast<K>(~K{0});
  Chosen c{0, 0};
  if (rule.by_ratio) {
    c.k = rule.ratio.data == nullptr ? rule.k : count_of_ratio(rule, row);
  } else if (limit != nan) {
    c.k = passing > rule.min_patches ? passing : rule.min_patches;
  }
  if (c.k > rule.length) c.k = rule.length;
  if (c.k > 0) c.hinted = rule.hinted < c.k - 1 ? rule.hinted : c.k - 1;
  return c;
}

// Whether the element with so many keys less than, equal to, and equal and before its own is masked.
__device__ __forceinline__ bool masked_by_rank(const Rule& rule, const Chosen& c, int64_t less, int64_t equal,
                                               int64_t before) {
  if (!rule.lowest) {
    const int64_t rank = rule.length - less - equal + before;  // highest first
    return c.hinted <= rank && rank < c.k;
  }
  if (less + before >= c.k) return false;
  const int64_t ties = equal < c.k - less ? equal : c.k - less;  // equals that are selected
  return c.k - less - ties + before >= c.hinted;                 // rank among the selected, highest first
}

// A key and the number of keys less than and equal to it.
template <typename K>
struct Ranked {
  K key;
  int64_t less, equal;
};

// Masked: keys above `low` or among its first low_to equals, and below `high` or among its equals [high_from, high_to).
template <typename K>
struct Bounds {
  K low, high;
  int64_t low_to, high_from, high_to;

  __device__ __forceinline__ bool masked(K key, int64_t low_before, int64_t high_before) const {
    return (key > low || (key == low && low_before < low_to)) &&
           (key < high || (key == high && high_before >= high_from && high_before < high_to));
  }
};

// The ranks (ascending, from 0) of the bounds' keys. Slot 0 is always needed, slot 1 for hinted highest scores only.
__device__ __forceinline__ int64_t bound_rank(const Rule& rule, const Chosen& c, int slot) {
  if (rule.lowest) return c.k - c.hinted - 1;
  return slot == 0 ? rule.length - c.k : rule.length - 1 - c.hinted;
}

template <typename K>
__device__ __forceinline__ Bounds<K> bounds_of(const Rule& rule, const Chosen& c, const Ranked<K>& first,
                                               const Ranked<K>& second) {
  Bounds<K> b{0, static_cast<K>(~K{0}), 0, 0, rule.length};
  if (rule.lowest) {
    const int64_t left = c.k - first.less, ties = first.equal < left ? first.equal : left;
    b.high = first.key;
    b.high_from = ties - (left - c.hinted);
    b.high_to = ties;
  } else {
    b.low = first.key;
    b.low_to = c.k - (rule.length - first.less - first.equal);
    if (c.hinted > 0) {
      b.high = second.key;
      b.high_from = c.hinted - (rule.length - second.less - second.equal);
    }
  }
  return b;
}

// The keys of values[first], values[first + step], .. below `end`, all loaded before the first is looked at; 0 beyond,
// which no score has. end > 0: in place of what is beyond, the last value is loaded, since a load on a condition would
// be waited for before the next.
template <int N, typename K, typename V>
__device__ __forceinline__ void read_keys(K (&key)[N], const V* values, int64_t first, int step, int64_t end) {
  const int left = end - first < int64_t{N} * step ? static_cast<int>(end - first) : N * step;
  V value[N];
#pragma unroll
  for (int u = 0; u < N; ++u) value[u] = values[first + (u * step < left ? u * step : left - 1)];
#pragma unroll
  for (int u = 0; u < N; ++u) key[u] = u * step < left ? as_key(value[u]) : 0;
}

// Adds one to a bin, in shared memory. Most lanes of a warp often meet in one bin; from 8.0 on the hardware adds those
// together in one access, for a constant 1 whose old sum nobody asks for.
__device__ __forceinline__ void tally(unsigned* histogram, unsigned bin) { atomicAdd(&histogram[bin], 1u); }

// The bin that holds the element of a rank, how many are in the bins below it, and how many in it.
struct Located {
  int64_t less, count;
  int32_t bin;
};
struct LocateScratch {
  int64_t warp_total[32];
  Located found;
};

// All threads of the block (whole warps) call it, with the counts complete; ends with a barrier.
template <typename Counts>
__device__ __forceinline__ Located locate(const Counts& counts, int bins, int64_t rank, LocateScratch* scratch) {
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x), lane = thread & 31;
  const int each = (bins + threads - 1) / threads, begin = thread * each < bins ? thread * each : bins;
  const int end = begin + each < bins ? begin + each : bins;
  int64_t own = 0;
  for (int bin = begin; bin < end; ++bin) own += static_cast<int64_t>(counts[bin]);
  int64_t upto = own;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t below = __shfl_up_sync(full_warp, upto, distance);
    if (lane >= distance) upto += below;
  }
  if (lane == 31) scratch->warp_total[thread / 32] = upto;
  __syncthreads();
  if (own > 0) {
    int64_t less = upto - own;
    for (int warp = 0; warp < thread / 32; ++warp) less += scratch->warp_total[warp];
    if (less <= rank && rank < less + own) {
      int bin = begin;
      while (rank >= less + static_cast<int64_t>(counts[bin])) less += static_cast<int64_t>(counts[bin++]);
      scratch->found = {less, static_cast<int64_t>(counts[bin]), bin};
    }
  }
  __syncthreads();
  return scratch->found;
}

struct RadixScratch {
  unsigned histogram[digit_bins];
  LocateScratch locate;
};

// One block's radix select: the key of the given rank among those whose bits from `bits` up are those of `prefix`;
// `less` are below all of these. A digit's counts have been read when locate returns.
template <typename K, typename V>
__device__ __forceinline__ Ranked<K> radix_select(const V* values, int64_t length, K prefix, int bits, int64_t less,
                                                  int64_t rank, RadixScratch* scratch) {
  constexpr int ahead = 4;
  Ranked<K> r{prefix, less, 0};
#pragma unroll 1
  for (int shift = bits - digit_bits; shift >= 0; shift -= digit_bits) {
    for (int bin = threadIdx.x; bin < digit_bins; bin += blockDim.x) scratch->histogram[bin] = 0;
    __syncthreads();
#pragma unroll 1
    for (int64_t base = threadIdx.x; base < length; base += ahead * static_cast<int64_t>(blockDim.x)) {
      K key[ahead];
      read_keys(key, values, base, static_cast<int>(blockDim.x), length);
#pragma unroll
      for (int u = 0; u < ahead; ++u) {
        if (key[u] != 0 && ((key[u] ^ r.key) >> (shift + digit_bits - 1) >> 1) == 0) {
          tally(scratch->histogram, static_cast<unsigned>(key[u] >> shift) & (digit_bins - 1));
        }
      }
    }
    __syncthreads();
    const Located at = locate(scratch->histogram, digit_bins, rank - r.less, &scratch->locate);
    r.key |= static_cast<K>(at.bin) << shift;
    r.less += at.less;
    r.equal = at.count;
  }
  return r;
}

struct MarkScratch {
  int64_t low[32], high[32];
};

// Writes the mask of a row's (or tile's) elements: a warp takes a run of them, counts the ties before its own from
// those of the warps before, then goes over its run again in order. low_before, high_before: ties ahead of the first
// element. AHEAD: keys that a lane loads before it looks at the first.
template <int AHEAD, typename K, typename V>
__device__ __forceinline__ void mark(const V* values, int64_t length, const Bounds<K>& bounds, int64_t low_before,
                                     int64_t high_before, bool* patches, MarkScratch* scratch) {
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t run = (length + blockDim.x - 1) / blockDim.x * 32, begin = warp * run;
  const int64_t end = begin + run < length ? begin + run : length;
  K key[AHEAD];
  int32_t own_low = 0, own_high = 0;
#pragma unroll 1
  for (int64_t base = begin; base < end; base += 32 * AHEAD) {
    read_keys(key, values, base + lane, 32, end);
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      own_low += key[u] == bounds.low;
      own_high += key[u] == bounds.high;
    }
  }
  const int64_t low = sum_lanes(int64_t{own_low}), high = sum_lanes(int64_t{own_high});
  if (lane == 0) {
    scratch->low[warp] = low;
    scratch->high[warp] = high;
  }
  __syncthreads();
  for (int w = 0; w < warp; ++w) {
    low_before += scratch->low[w];
    high_before += scratch->high[w];
  }
  const unsigned below = (1u << lane) - 1;
#pragma unroll 1
  for (int64_t base = begin; base < end; base += 32 * AHEAD) {
    read_keys(key, values, base + lane, 32, end);
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      const unsigned at_low = __ballot_sync(full_warp, key[u] == bounds.low);
      const unsigned at_high = __ballot_sync(full_warp, key[u] == bounds.high);
      if (key[u] != 0) {
        patches[base + lane + 32 * u] =
            bounds.masked(key[u], low_before + __popc(at_low & below), high_before + __popc(at_high & below));
      }
      low_before += __popc(at_low);
      high_before += __popc(at_high);
    }
  }
}

}  // namespace entmask::cuda
