// CUDA C++ for a plain C++ compiler: with this header a kernel's source runs on the CPU, one fiber per CUDA thread.
//
// It stands in for cuda_runtime.h wherever ENTMASK_SIMT is defined. Types, half and bfloat16 are the toolkit's own
// headers. docs/simt.md says what is modelled and what is not.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <vector_functions.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#include "counters.h"
#include "runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#ifdef SIMT_ASAN
#define __shared__ static  // ASan puts red zones around plain statics only; one block at a time then
#else
#define __shared__ static thread_local  // a block's threads all run on one OS thread
#endif
#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(simt::block->dynamic_shared)

#define threadIdx (simt::thread->index)
#define blockIdx (simt::block->index)
#define blockDim (simt::block->threads)
#define gridDim (simt::block->grid)
constexpr int warpSize = 32;

#define SIMT_SITE const simt::Site& site = {__builtin_FILE(), __builtin_LINE(), 0}
#define SIMT_HERE (simt::Site{__FILE__, __LINE__, __COUNTER__})

// In the counter build an access that is counted here must not be counted by the compiler's instrumentation too, and
// its call must stay a call: the return address is the call site.
#ifdef SIMT_COUNT
#define SIMT_ACCESS __attribute__((noinline, no_sanitize("thread")))
#else
#define SIMT_ACCESS inline
#endif

namespace simt {

template <typename... Parameters, typename... Arguments>
cudaError_t launch_grid(bool early, void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t dynamic_shared,
                        cudaStream_t stream, const Arguments&... arguments) {
  const std::tuple<Parameters...> stored(arguments...);
  const bool valid = run_grid(reinterpret_cast<const void*>(kernel), grid, threads, dynamic_shared, stream, early,
                              [&] { std::apply(kernel, stored); });
  return valid ? cudaSuccess : cudaErrorInvalidConfiguration;
}
template <typename... All>
cudaError_t launch(const All&... all) {
  return launch_grid(false, all...);
}
// As with programmatic dependent launch: each thread must wait for the launch before, and touch no memory until then.
template <typename... All>
cudaError_t launch_early(const All&... all) {
  return launch_grid(true, all...);
}

inline int multiprocessors() { return settings.multiprocessors; }
inline int blocks_at_once() { return settings.blocks_at_once; }

inline unsigned lane() { return thread->linear % 32; }

// ---- Vectors: one access of all bytes, which must be aligned.

template <typename V>
SIMT_ACCESS V load_vector(const V* p, const Site& site) {
  check_alignment(p, sizeof(V), site);
#ifdef SIMT_COUNT
  count_access(Access::load, p, sizeof(V), __builtin_return_address(0));
#endif
  return *p;
}
template <typename V>
SIMT_ACCESS void store_vector(V* p, const V& v, const Site& site) {
  check_alignment(p, sizeof(V), site);
#ifdef SIMT_COUNT
  count_access(Access::store, p, sizeof(V), __builtin_return_address(0));
#endif
  *p = v;
}

template <typename V>
struct alignas(sizeof(V)) Vector : V {
  Vector() = default;
  __forceinline__ Vector(const V& v) : V(v) {}
  __forceinline__ Vector(const Vector& v, SIMT_SITE) : V(load_vector<V>(&v, site)) {}
  __forceinline__ Vector& operator=(const Vector& v) {
    store_vector<V>(this, load_vector<V>(&v, here()), here());
    return *this;
  }
  static Site here(SIMT_SITE) { return site; }
};

// ---- Atomics: relaxed, so that only fences order other accesses; another thread may run just before.

template <typename T, typename Update>
SIMT_ACCESS T atomic_update(T* p, const Update& update) {
#ifdef SIMT_COUNT
  count_access(Access::atomic, p, sizeof(T), __builtin_return_address(0));
#endif
  before_atomic(p);
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  Bits* bits = reinterpret_cast<Bits*>(p);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED), next;
  T value;
  do {
    memcpy(&value, &old, sizeof value);
    const T changed = update(value);
    memcpy(&next, &changed, sizeof next);
  } while (!__atomic_compare_exchange_n(bits, &old, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return value;
}

template <typename T>
T shuffle(uint32_t mask, T value, unsigned source, const Site& site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = warp_operation(WarpOperation::shuffle, mask, bits, source, site);
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace simt

#define float2 simt::Vector<::float2>
#define float4 simt::Vector<::float4>
#define int2 simt::Vector<::int2>
#define int4 simt::Vector<::int4>
#define uint2 simt::Vector<::uint2>
#define uint4 simt::Vector<::uint4>
#define double2 simt::Vector<::double2>
#define longlong2 simt::Vector<::longlong2>
#define ulonglong2 simt::Vector<::ulonglong2>

// ---- Barriers and fences. A macro, because __COUNTER__ must tell two barriers apart that stand on one line.

#define __syncthreads() ((void)simt::barrier(0, SIMT_HERE))
#define __syncthreads_count(predicate) (static_cast<int>(simt::barrier(predicate, SIMT_HERE).yes))
#define __syncthreads_or(predicate) (static_cast<int>(simt::barrier(predicate, SIMT_HERE).yes != 0))
#define __syncthreads_and(predicate) (static_cast<int>(simt::barrier(!(predicate), SIMT_HERE).yes == 0))
inline void __syncwarp(unsigned mask = ~0u, SIMT_SITE) {
  simt::warp_operation(simt::WarpOperation::sync, mask, 0, 0, site);
}
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }

// ---- Warp operations

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  return static_cast<unsigned>(simt::warp_operation(simt::WarpOperation::vote, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) { return __ballot_sync(mask, !predicate, site) == 0; }
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return static_cast<unsigned>(simt::warp_operation(simt::WarpOperation::match, mask, bits, 0, site));
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_SITE) {
  const unsigned first = simt::lane() & ~static_cast<unsigned>(width - 1);
  return simt::shuffle(mask, value, first | (static_cast<unsigned>(source) & (width - 1)), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_SITE) {
  const unsigned lane = simt::lane(), source = lane ^ static_cast<unsigned>(bits), last = lane | (width - 1);
  return simt::shuffle(mask, value, source <= last ? source : lane, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  const unsigned lane = simt::lane(), source = lane + delta, last = lane | (width - 1);
  return simt::shuffle(mask, value, source <= last ? source : lane, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  const unsigned lane = simt::lane(), first = lane & ~static_cast<unsigned>(width - 1);
  return simt::shuffle(mask, value, lane >= first + delta ? lane - delta : lane, site);
}

// ---- Atomics

template <typename T>
using Same = std::common_type_t<T>;  // the second argument converts, as it does in CUDA

template <typename T>
__forceinline__ T atomicAdd(T* p, Same<T> v) {
  return simt::atomic_update(p, [=](T old) { return static_cast<T>(old + v); });
}
template <typename T>
__forceinline__ T atomicMax(T* p, Same<T> v) {
  return simt::atomic_update(p, [=](T old) { return std::max(old, v); });
}
template <typename T>
__forceinline__ T atomicMin(T* p, Same<T> v) {
  return simt::atomic_update(p, [=](T old) { return std::min(old, v); });
}
template <typename T>
__forceinline__ T atomicOr(T* p, Same<T> v) {
  return simt::atomic_update(p, [=](T old) { return old | v; });
}
template <typename T>
__forceinline__ T atomicExch(T* p, Same<T> v) {
  return simt::atomic_update(p, [=](T) { return v; });
}
template <typename T>
__forceinline__ T atomicCAS(T* p, Same<T> expected, Same<T> v) {
  return simt::atomic_update(p, [=](T old) { return old == expected ? v : old; });
}

// ---- Loads and stores with a cache hint

template <typename T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}
template <typename T>
__forceinline__ T __ldcs(const T* p) {
  return *p;
}
template <typename T>
__forceinline__ T __ldcg(const T* p) {
  return *p;
}
template <typename T>
__forceinline__ void __stcs(T* p, Same<T> v) {
  *p = v;
}

// ---- Arithmetic

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
template <typename To, typename From>
To simt_bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float v) { return simt_bits<unsigned>(v); }
inline int __float_as_int(float v) { return simt_bits<int>(v); }
inline float __uint_as_float(unsigned v) { return simt_bits<float>(v); }
inline float __int_as_float(int v) { return simt_bits<float>(v); }
inline long long __double_as_longlong(double v) { return simt_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return simt_bits<double>(v); }
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

// ---- The part of the runtime that launchers call

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return simt::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), value) ? cudaSuccess : cudaErrorInvalidValue;
}
