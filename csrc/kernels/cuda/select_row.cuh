// Selection in rows that one block holds: one launch.
//
// Up to rank_limit patches a row the rank of each element is counted against all others: P^2 comparisons, but no
// barrier. A few lanes share an element, and a few blocks a row, so that a batch of a few images keeps the whole chip
// busy; short rows share a block. Longer rows that fit shared memory take a radix select, a block each.
#pragma once

#include "select.cuh"

namespace entmask::cuda {

constexpr int rank_threads = 256, rank_lanes = 8;  // that share an element
constexpr int rank_elements = rank_threads / rank_lanes;
constexpr int row_block_threads = 768;  // at most; more of them would have too few registers

// `slices` blocks take rank_elements each of the same rows.
template <typename F>
__global__ void __launch_bounds__(rank_threads, 4)
    select_rank_kernel(const F* scores,  // [rows, P]
                       bool* patches,    // [rows, P]
                       int64_t rows, int32_t rows_a_block, int32_t slices, Rule rule) {
  wait_for_predecessor();
  using K = Key<F>;
  __shared__ K keys[rank_limit];
  const int32_t length = static_cast<int32_t>(rule.length), group = static_cast<int32_t>(blockIdx.x) / slices;
  const int32_t slice = static_cast<int32_t>(blockIdx.x) - group * slices;
  const int64_t first_row = static_cast<int64_t>(group) * rows_a_block, first = first_row * length;
  const int32_t held = static_cast<int32_t>(rows - first_row < rows_a_block ? rows - first_row : rows_a_block) * length;
#pragma unroll 2
  for (int32_t i = threadIdx.x; i < held; i += rank_threads) keys[i] = key_of(scores[first + i]);
  __syncthreads();
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % rank_lanes;
  const int32_t i = slice * rank_elements + static_cast<int32_t>(threadIdx.x) / rank_lanes;
  const bool inside = i < held;
  const int32_t row = inside ? i / length : 0, begin = row * length;
  const K own = keys[inside ? i : 0], limit = rule.limit<F>(first_row + row);
  int32_t less = 0, equal = 0, before = 0, passing = 0;
  for (int32_t j = begin + lane; j < begin + length; j += rank_lanes) {
    const K key = keys[j];
    less += key < own;
    equal += key == own;
    before += key == own && j < i;
    passing += rule.passes(key, limit);
  }
  less = sum_lanes(less, rank_lanes);
  equal = sum_lanes(equal, rank_lanes);
  before = sum_lanes(before, rank_lanes);
  passing = sum_lanes(passing, rank_lanes);
  if (inside && lane == 0) {
    patches[first + i] = masked_by_rank(rule, chosen(rule, first_row + row, limit, passing), less, equal, before);
  }
}

// The first digit is counted while the keys are read.
template <typename F>
__global__ void __launch_bounds__(row_block_threads, 1) select_block_kernel(const F* scores,  // [rows, P]
                                                                            bool* patches,    // [rows, P]
                                                                            Rule rule) {
  wait_for_predecessor();
  using K = Key<F>;
  constexpr int ahead = 4, rest = 8 * sizeof(K) - digit_bits;
  DYNAMIC_SHARED(K, keys);  // [P]
  __shared__ RadixScratch radix;
  __shared__ MarkScratch mark_scratch;
  __shared__ Ranked<K> bound[2];  // here, and not in registers, which are few for so many threads
  __shared__ Chosen c;
  __shared__ unsigned passing;
  const int length = static_cast<int>(rule.length), thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rule.length;
  const K limit = rule.limit<F>(blockIdx.x);
  if (thread < digit_bins) radix.histogram[thread] = 0;
  if (thread == 0) passing = 0;
  __syncthreads();
  unsigned own_passing = 0;
  for (int base = thread; base < length; base += ahead * threads) {
    K key[ahead];
    read_keys(key, scores + first, base, threads, length);
#pragma unroll
    for (int u = 0; u < ahead; ++u) {
      if (key[u] == 0) break;
      keys[base + u * threads] = key[u];
      tally(radix.histogram, static_cast<unsigned>(key[u] >> rest));
      if (!rule.by_ratio) own_passing += rule.passes(key[u], limit);
    }
  }
  if (!rule.by_ratio) atomicAdd(&passing, own_passing);
  __syncthreads();
  if (thread == 0) c = chosen(rule, blockIdx.x, limit, passing);
  __syncthreads();
  if (c.k == 0) {
    for (int i = thread; i < length; i += threads) patches[first + i] = false;
    return;
  }
  const int slots = c.hinted > 0 && !rule.lowest ? 2 : 1;
  for (int s = 0; s < slots; ++s) {
    const Located at = locate(radix.histogram, digit_bins, bound_rank(rule, c, s), &radix.locate);
    if (thread == 0) bound[s] = {static_cast<K>(at.bin) << rest, at.less, at.count};
    __syncthreads();
  }
#pragma unroll 1
  for (int s = 0; s < slots; ++s) {
    const Ranked<K> found =
        radix_select(keys, length, bound[s].key, rest, bound[s].less, bound_rank(rule, c, s), &radix);
    if (thread == 0) bound[s] = found;
    __syncthreads();
  }
  mark<ahead>(keys, length, bounds_of(rule, c, bound[0], bound[1]), 0, 0, patches + first, &mark_scratch);
}

}  // namespace entmask::cuda
