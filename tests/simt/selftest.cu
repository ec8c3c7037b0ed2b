// Small kernels for the harness's own tests: a healthy one that uses everything, and one for each class of fault.
#include <cstddef>
#include <cstdint>

#include "simt.h"

#include "driver.h"

namespace {

struct Params {
  const float* in;    // [n]
  float* out;         // [n], or [blocks] for the sums
  unsigned* counter;  // one; starts at -1, as every output of a case
  int64_t n;
};

constexpr int block_size = 64;

__device__ float warp_sum(float v) {
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(~0u, v, distance);
  return v;
}

// ---- Healthy: sums of 64 values a block, then the last block adds 1 to what the others wrote.
__global__ void sums(Params p) {
  DYNAMIC_SHARED(float, copy);
  __shared__ float partial[block_size / 32];
  __shared__ bool last;
  const int t = threadIdx.x;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * block_size + t;
  copy[t] = i < p.n ? p.in[i] : 0;
  __syncthreads();
  const float sum = warp_sum(copy[block_size - 1 - t]);
  if (t % 32 == 0) partial[t / 32] = sum;
  __syncthreads();
  if (t == 0) {
    p.out[blockIdx.x] = partial[0] + partial[1];
    __threadfence();
    last = atomicAdd(p.counter, 1u) + 1 == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last) {
    for (unsigned b = t; b < gridDim.x; b += block_size) p.out[b] += 1;
    if (t == 0) atomicExch(p.counter, 77u);
  }
}

// ---- Vectors and warp operations
__global__ void vectors(Params p) {
  const int t = threadIdx.x;
  if (4 * t >= p.n) return;
  float4 v = reinterpret_cast<const float4*>(p.in)[t];
  v.x += 1;
  reinterpret_cast<float4*>(p.out)[t] = v;
}

// Each lane writes one number that tests one operation's meaning.
__global__ void warp(Params p) {
  const int lane = threadIdx.x;
  const float v = p.in[lane];
  p.out[lane] = __shfl_down_sync(~0u, v, 3);
  p.out[32 + lane] = __shfl_up_sync(~0u, v, 3);
  p.out[64 + lane] = __shfl_sync(~0u, v, 9, 8);
  p.out[96 + lane] = __shfl_xor_sync(~0u, v, 5);
  p.out[128 + lane] = static_cast<float>(__popc(__ballot_sync(~0u, v > 0)));
  p.out[160 + lane] = static_cast<float>(__any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 31));
  p.out[192 + lane] = static_cast<float>(__popc(__match_any_sync(~0u, lane / 5)));
  p.out[224 + lane] = static_cast<float>(__syncthreads_count(lane < 7) + 100 * __syncthreads_or(lane == 3) +
                                         1000 * __syncthreads_and(lane < 32));
  if (lane < 16) p.out[256 + lane] = __shfl_sync(0xffffu, v, 15);  // half of the warp
}

// ---- Faults
__global__ void no_barrier(Params p) {
  __shared__ float copy[block_size];
  copy[threadIdx.x] = p.in[threadIdx.x];
  p.out[threadIdx.x] = copy[block_size - 1 - threadIdx.x];
}
__global__ void stale_shared(Params p) {
  __shared__ float copy[block_size];
  if (threadIdx.x != 5) copy[threadIdx.x] = p.in[threadIdx.x];
  __syncthreads();
  p.out[threadIdx.x] = copy[threadIdx.x];
}
__global__ void barrier_in_branch(Params p) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.out[threadIdx.x] = 0;
}
__global__ void barrier_after_exit(Params p) {
  p.out[threadIdx.x] = 0;
  if (threadIdx.x == 7) return;
  __syncthreads();
}
__global__ void deadlock(Params p) {
  p.out[threadIdx.x] = 0;
  if (threadIdx.x == 3)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void outside_mask(Params p) { p.out[threadIdx.x] = __shfl_xor_sync(0xffffu, p.in[threadIdx.x], 1); }
__global__ void dead_lane(Params p) {
  p.out[threadIdx.x] = 0;
  if (threadIdx.x % 32 == 31) return;
  p.out[threadIdx.x] = __shfl_sync(~0u, p.in[threadIdx.x], 31);
}
__global__ void two_lines(Params p) {
  float v = p.in[threadIdx.x];
  if (threadIdx.x % 2)
    v = __shfl_xor_sync(~0u, v, 1);
  else
    v = __shfl_xor_sync(~0u, v, 1);
  p.out[threadIdx.x] = v;
}
__global__ void misaligned(Params p) {
  p.out[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    const float4 v = *reinterpret_cast<const float4*>(p.in + 1);
    p.out[0] = v.x;
  }
}
__global__ void write_outside(Params p) { p.out[threadIdx.x + 1] = p.in[threadIdx.x]; }
__global__ void write_input(Params p) {
  p.out[threadIdx.x] = 0;
  const_cast<float*>(p.in)[threadIdx.x] += 1;
}
__global__ void read_outside(Params p) { p.out[threadIdx.x] = p.in[threadIdx.x + 1] > 1e30f; }
__global__ void shared_outside(Params p) {
  DYNAMIC_SHARED(float, copy);
  copy[threadIdx.x + 1] = p.in[threadIdx.x];
  __syncthreads();
  p.out[threadIdx.x] = copy[threadIdx.x + 1];
}
__global__ void static_shared_outside(Params p) {
  __shared__ float copy[block_size];
  copy[threadIdx.x + 1] = p.in[threadIdx.x];
  __syncthreads();
  p.out[threadIdx.x] = copy[threadIdx.x + 1];
}
__global__ void unwritten(Params p) {
  if (threadIdx.x != 9) p.out[threadIdx.x] = 0;
}
__global__ void plain_add(Params p) {
  p.out[blockIdx.x * block_size + threadIdx.x] = 0;
  if (threadIdx.x == 0) *p.counter = *p.counter + 1;
}
__global__ void order_matters(Params p) {
  p.out[blockIdx.x * block_size + threadIdx.x] = static_cast<float>(atomicAdd(p.counter, 1u));
}
__global__ void no_fence(Params p) {
  if (threadIdx.x == 0) {
    p.out[blockIdx.x] = 1;
    if (atomicAdd(p.counter, 1u) + 1 == gridDim.x - 1)
      for (unsigned b = 0; b < gridDim.x; ++b) p.out[b] += 1;
  }
}
__global__ void no_second_fence(Params p) {
  if (threadIdx.x == 0) {
    p.out[blockIdx.x] = 1;
    __threadfence();
    if (atomicAdd(p.counter, 1u) + 1 == gridDim.x - 1)
      for (unsigned b = 0; b < gridDim.x; ++b) p.out[b] += 1;
  }
}
__global__ void fence_before_write(Params p) {
  if (threadIdx.x == 0) {
    __threadfence();
    p.out[blockIdx.x] = 1;
    if (atomicAdd(p.counter, 1u) + 1 == gridDim.x - 1) {
      __threadfence();
      for (unsigned b = 0; b < gridDim.x; ++b) p.out[b] += 1;
    }
  }
}
// Right: every thread's own fence, a barrier, one thread's atomic, a barrier, and every thread's own fence.
__global__ void fence_after_barrier(Params p) {
  __shared__ bool last;
  if (threadIdx.x == 9) p.out[blockIdx.x] = 1;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(p.counter, 1u) + 1 == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (unsigned b = threadIdx.x; b < gridDim.x; b += block_size) p.out[b] += 1;
}
// Lanes exchange through shared memory with nothing but the warp's habit of running together.
__global__ void no_syncwarp(Params p) {
  __shared__ float copy[block_size];
  copy[threadIdx.x] = p.in[threadIdx.x];
  p.out[threadIdx.x] = copy[threadIdx.x ^ 1];
}
__global__ void spin(Params p) {
  p.out[threadIdx.x] = 0;
  for (volatile int i = 0;; i = i + 1) {
  }
}

// ---- Faults of kernels that are launched early
__global__ void no_wait(Params p) { p.out[threadIdx.x] = p.in[threadIdx.x]; }
__global__ void wait_of_some(Params p) {
  if (threadIdx.x == 9) return;
  simt::wait_for_predecessor();
  p.out[threadIdx.x] = p.in[threadIdx.x];
}
__global__ void wait_after_barrier(Params p) {
  __syncthreads();
  simt::wait_for_predecessor();
  p.out[threadIdx.x] = p.in[threadIdx.x];
}
__global__ void wait_after_load(Params p) {
  const float value = p.in[threadIdx.x];
  simt::wait_for_predecessor();
  p.out[threadIdx.x] = value;
}
__global__ void waits(Params p) {
  __shared__ float copy[block_size];
  copy[threadIdx.x] = 0;
  simt::wait_for_predecessor();
  copy[threadIdx.x] += p.in[threadIdx.x];
  p.out[threadIdx.x] = copy[threadIdx.x];
}

// ---- Requests for the counter build
__global__ void strided_reads(Params p) { p.out[threadIdx.x] = p.in[8 * threadIdx.x]; }
__global__ void bank_conflicts(Params p) {
  __shared__ float table[32 * 33];
  const int t = threadIdx.x, row = t % 32, column = t / 32;
  table[row * 32 + column] = p.in[t];  // 32 lanes, one bank
  table[row * 33 + 2 + column] = 0;    // 32 banks
  __syncthreads();
  p.out[t] = table[row * 33 + 2 + column];
}

template <void (*kernel)(Params), int blocks_, int shared_bytes>
cudaError_t run_kernel(const void* params, void*, cudaStream_t stream) {
  return simt::launch(kernel, dim3(blocks_), dim3(block_size), shared_bytes, stream,
                      *static_cast<const Params*>(params));
}
template <void (*kernel)(Params)>
cudaError_t run_early(const void* params, void*, cudaStream_t stream) {
  return simt::launch_early(kernel, dim3(1), dim3(block_size), 0, stream, *static_cast<const Params*>(params));
}
template <unsigned threads, unsigned rows, int shared_bytes>
cudaError_t bad_launch(const void* params, void*, cudaStream_t stream) {
  return simt::launch(vectors, dim3(1, rows), dim3(threads), shared_bytes, stream, *static_cast<const Params*>(params));
}
cudaError_t warp_launch(const void* params, void*, cudaStream_t stream) {
  return simt::launch(warp, dim3(1), dim3(32), 0, stream, *static_cast<const Params*>(params));
}
cudaError_t other_stream(const void* params, void*, cudaStream_t) {
  return simt::launch(vectors, dim3(1), dim3(block_size), 0, nullptr, *static_cast<const Params*>(params));
}
cudaError_t opts_in(const void* params, void*, cudaStream_t stream) {
  constexpr int bytes = 64 << 10;
  const cudaError_t error = cudaFuncSetAttribute(vectors, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return simt::launch(vectors, dim3(1), dim3(block_size), bytes, stream, *static_cast<const Params*>(params));
}

size_t none(const void*) { return 0; }

}  // namespace

#define KERNEL(name, blocks, shared_bytes) {#name, sizeof(Params), none, run_kernel<name, blocks, shared_bytes>}
#define EARLY(name) {#name, sizeof(Params), none, run_early<name>}
const simt::Operation simt::operations[] = {
    KERNEL(sums, 7, block_size * sizeof(float)),
    KERNEL(vectors, 1, 0),
    {"warp", sizeof(Params), none, warp_launch},
    {"opts_in", sizeof(Params), none, opts_in},
    KERNEL(no_barrier, 1, 0),
    KERNEL(stale_shared, 1, 0),
    KERNEL(barrier_in_branch, 1, 0),
    KERNEL(barrier_after_exit, 1, 0),
    KERNEL(deadlock, 1, 0),
    KERNEL(outside_mask, 1, 0),
    KERNEL(dead_lane, 1, 0),
    KERNEL(two_lines, 1, 0),
    KERNEL(misaligned, 1, 0),
    KERNEL(write_outside, 1, 0),
    KERNEL(write_input, 1, 0),
    KERNEL(read_outside, 1, 0),
    KERNEL(shared_outside, 1, block_size * sizeof(float)),
    KERNEL(static_shared_outside, 1, 0),
    KERNEL(unwritten, 1, 0),
    KERNEL(plain_add, 5, 0),
    KERNEL(order_matters, 5, 0),
    KERNEL(no_fence, 5, 0),
    KERNEL(no_second_fence, 5, 0),
    KERNEL(fence_before_write, 5, 0),
    KERNEL(fence_after_barrier, 5, 0),
    KERNEL(no_syncwarp, 1, 0),
    KERNEL(spin, 1, 0),
    EARLY(waits),
    EARLY(no_wait),
    EARLY(wait_of_some),
    EARLY(wait_after_barrier),
    EARLY(wait_after_load),
    KERNEL(strided_reads, 1, 0),
    KERNEL(bank_conflicts, 1, 0),
    {"too_many_threads", sizeof(Params), none, bad_launch<1025, 1, 0>},
    {"too_many_rows", sizeof(Params), none, bad_launch<64, 65536, 0>},
    {"empty_grid", sizeof(Params), none, bad_launch<64, 0, 0>},
    {"too_much_shared", sizeof(Params), none, bad_launch<64, 1, (48 << 10) + 4>},
    {"other_stream", sizeof(Params), none, other_stream},
    {nullptr, 0, nullptr, nullptr},
};
