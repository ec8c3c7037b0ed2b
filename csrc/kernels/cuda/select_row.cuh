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
constexpr int64_t row_block_threads = 512;  // at most

// `slices` blocks take rank_elements each of the same rows.
template <typename F>
__global__ void __launch_bounds__(rank_threads, 4)
    select_rank_kernel(const F* __restrict__ scores,  // [rows, P]
                       bool* __restrict__ patches,    // [rows, P]
                       int64_t rows, int32_t rows_a_block, int32_t slices, Rule rule) {
  using K = Key<F>;
  __shared__ K keys[rank_limit];
  const int32_t length = static_cast<int32_t>(rule.length), group = static_cast<int32_t>(blockIdx.x) / slices;
  const int32_t slice = static_cast<int32_t>(blockIdx.x) - group * slices;
  const int64_t first_row = static_cast<int64_t>(group) * rows_a_block, first = first_row * length;
  const int32_t held = static_cast<int32_t>(rows - first_row < rows_a_block ? rows - first_row : rows_a_block) * length;
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

// Blocks a multiprocessor that the registers must leave room for; 0: as the compiler sees fit, which with 64-bit keys
// would cost spills.
template <typename F>
constexpr int row_blocks = sizeof(F) == 8 ? 1 : 0;

template <typename F>
__global__ void __launch_bounds__(row_block_threads, row_blocks<F>)
    select_block_kernel(const F* __restrict__ scores,  // [rows, P]
                        bool* __restrict__ patches,    // [rows, P]
                        Rule rule) {
  using K = Key<F>;
  DYNAMIC_SHARED(K, keys);  // [P]
  __shared__ RadixScratch radix;
  __shared__ MarkScratch mark_scratch;
  __shared__ unsigned passing;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rule.length;
  const K limit = rule.limit<F>(blockIdx.x);
  if (threadIdx.x == 0) passing = 0;
  __syncthreads();
  for (int64_t base = 0; base < rule.length; base += blockDim.x) {
    const int64_t i = base + threadIdx.x;
    const K key = i < rule.length ? key_of(scores[first + i]) : 0;
    if (i < rule.length) keys[i] = key;
    tally(&passing, 0, i < rule.length && rule.passes(key, limit));
  }
  __syncthreads();
  const Chosen c = chosen(rule, blockIdx.x, limit, passing);
  if (c.k == 0) {
    for (int64_t i = threadIdx.x; i < rule.length; i += blockDim.x) patches[first + i] = false;
    return;
  }
  const auto key_at = [&](int64_t i) { return keys[i]; };
  constexpr int bits = 8 * sizeof(K);
  const Ranked<K> low = radix_select<K>(key_at, rule.length, 0, bits, 0, bound_rank(rule, c, 0), &radix);
  Ranked<K> high{};
  if (c.hinted > 0 && !rule.lowest) {
    high = radix_select<K>(key_at, rule.length, 0, bits, 0, bound_rank(rule, c, 1), &radix);
  }
  mark(key_at, rule.length, bounds_of(rule, c, low, high), 0, 0, patches + first, &mark_scratch);
}

}  // namespace entmask::cuda
