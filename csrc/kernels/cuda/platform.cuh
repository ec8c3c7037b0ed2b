// All that differs between a GPU (nvcc) and the CPU harness of tests/simt (a plain C++ compiler with -DENTMASK_SIMT,
// one fiber per CUDA thread). The kernels include this file in place of the CUDA headers and are otherwise the same
// source.
//
// The harness's simt.h gives: the keywords (__global__, __device__, __host__, __shared__, __forceinline__,
// __launch_bounds__), threadIdx, blockIdx, blockDim, gridDim, dim3, __syncthreads, __syncwarp, __shfl_sync,
// __shfl_xor_sync, __shfl_up_sync, __ballot_sync, __any_sync, __all_sync, atomicAdd on unsigned, __threadfence, __popc,
// the CUDA vector types, cudaError_t and cudaStream_t, __half and __nv_bfloat16 with their conversions,
// DYNAMIC_SHARED, and in namespace simt: launch_early(kernel, grid, block, shared_bytes, stream, arguments...) ->
// cudaError_t, wait_for_predecessor() -> void and multiprocessors(), blocks_at_once() -> int; exp2f and the rest of
// <math.h>.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef ENTMASK_SIMT

#include "simt.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>

// Declares `T* name`: the block's dynamic shared memory, once a kernel.
#define DYNAMIC_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char dynamic_shared_raw[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared_raw)

#endif

namespace entmask::cuda {

// The first statement of every kernel, in threads without work too: `launch` may start it before the launch ahead of it
// in the stream is complete. Returns when that one is, and its writes are seen; it has waited for the one before in
// turn. No pointer of a kernel is both const and __restrict__: that allows loads through the read-only cache, which the
// compiler may move to before the wait.
__device__ __forceinline__ void wait_for_predecessor() {
#ifdef ENTMASK_SIMT
  simt::wait_for_predecessor();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

#ifndef ENTMASK_SIMT
// Whether the code of a kernel for the current device has the wait. The device does not tell: on a new one PTX for an
// old architecture, which has none, may be what is compiled. All kernels are built for the same architectures, so the
// first one on a device answers for all.
inline cudaError_t has_wait(const void* kernel, bool* answer) {
  constexpr int devices = 64;
  static std::atomic<signed char> known[devices];  // 0: not yet asked
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  signed char state = device < devices ? known[device].load(std::memory_order_relaxed) : 0;
  if (state == 0) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    state = attributes.ptxVersion >= 90 ? 1 : -1;
    if (device < devices) known[device].store(state, std::memory_order_relaxed);
  }
  *answer = state > 0;
  return cudaSuccess;
}
#endif

// Queues kernel<<<grid, block, shared_bytes, stream>>>(arguments...) and returns the launch's error code. From compute
// capability 9.0 on the kernel is launched as soon as the last block of the one before it has ended, while what that
// one has written still goes to memory (programmatic dependent launch).
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
#ifdef ENTMASK_SIMT
  return simt::launch_early(kernel, grid, block, shared_bytes, stream, arguments...);
#else
  bool early = false;
  const cudaError_t error = has_wait(reinterpret_cast<const void*>(kernel), &early);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
#endif
}

// Multiprocessors of the current device: grids of looping kernels are made a multiple of it.
inline cudaError_t multiprocessors(int* count) {
#ifdef ENTMASK_SIMT
  *count = simt::multiprocessors();
  return cudaSuccess;
#else
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error : cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
#endif
}

// Blocks of a kernel without dynamic shared memory that are on a multiprocessor of the current device at once. The
// harness has room for any number but where a test says how many.
template <typename... Parameters>
cudaError_t blocks_at_once(void (*kernel)(Parameters...), int threads, int* blocks) {
#ifdef ENTMASK_SIMT
  *blocks = simt::blocks_at_once();
  return kernel != nullptr && threads > 0 ? cudaSuccess : cudaErrorInvalidConfiguration;
#else
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, 0);
#endif
}

// A load and a store of one word that other threads of the launch may read and write meanwhile; they order nothing.
template <typename T>
__device__ __forceinline__ T relaxed_load(const T* p) {
#ifdef ENTMASK_SIMT
  return atomicOr(const_cast<T*>(p), T{0});
#else
  return *static_cast<const volatile T*>(p);
#endif
}
template <typename T>
__device__ __forceinline__ void relaxed_store(T* p, T v) {
#ifdef ENTMASK_SIMT
  atomicExch(p, v);
#else
  *static_cast<volatile T*>(p) = v;
#endif
}

// Global memory, all bytes at once. A plain store of a vector may be taken apart: where a branch stands between two of
// them, the compiler merges what is on both sides and stores each component on its own.
template <typename V>
__device__ __forceinline__ void store_whole(V* p, const V& v) {
#ifdef __CUDA_ARCH__
  const size_t to = __cvta_generic_to_global(p);
  if constexpr (sizeof(V) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
    return;
  } else if constexpr (sizeof(V) == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(to), "r"(v.x), "r"(v.y) : "memory");
    return;
  }
#endif
  *p = v;
}

// The high 64 bits of a * b.
__host__ __device__ __forceinline__ uint64_t multiply_high(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// a * b, rounded: not contracted with a sum that it goes into.
__device__ __forceinline__ float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  const volatile float product = a * b;
  return product;
#endif
}
__device__ __forceinline__ double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  const volatile double product = a * b;
  return product;
#endif
}

// 2^v with a relative error of at most 2^-22; below 2^-126 it is 0.
__device__ __forceinline__ float power_of_two(float v) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
#else
  return exp2f(v);
#endif
}

// 1 / v to 1 ulp for v in [1, 2^126].
__device__ __forceinline__ float reciprocal(float v) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
#else
  return 1 / v;
#endif
}
__device__ __forceinline__ double reciprocal(double v) { return 1 / v; }

}  // namespace entmask::cuda
