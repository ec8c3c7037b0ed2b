// Adding up what the blocks of a launch have left: single blocks do it, so what counts is how long they wait.
#pragma once

#include "math.cuh"

namespace entmask::cuda {

// The sum of v[0, n) in every lane of a warp, in a fixed order. A lane takes every 32nd value, and loads 30 of them
// before it adds the first: six blocks on each of up to 160 multiprocessors are waited for once.
__device__ __forceinline__ double sum_row(const double* v, int64_t n) {
  constexpr int ahead = 30, chains = 4;
  const int lane = static_cast<int>(threadIdx.x & 31);
  double sum[chains] = {};
#pragma unroll 1
  for (int64_t base = lane; base < n; base += 32 * ahead) {
    const int left = n - base < 32 * ahead ? static_cast<int>(n - base) : 32 * ahead;
    double value[ahead];
#pragma unroll
    for (int u = 0; u < ahead; ++u) value[u] = 32 * u < left ? v[base + 32 * u] : 0;
#pragma unroll
    for (int u = 0; u < ahead; ++u) sum[u % chains] += value[u];
  }
  return sum_lanes(pairwise_sum(sum));
}

}  // namespace entmask::cuda
