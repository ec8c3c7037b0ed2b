// Loads and stores: dtypes, 16-byte accesses, and the three ways in which a thread reads the classes of its pixels.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "index.cuh"

namespace entmask::cuda {

// The type that a dtype is computed in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T narrow(Compute<T> v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

__device__ __forceinline__ double read_number(const Number& number, int64_t row) {
  if (number.data == nullptr) return number.value;
  const int64_t i = row * number.stride;
  switch (number.dtype) {
    case Dtype::float32:
      return static_cast<const float*>(number.data)[i];
    case Dtype::float64:
      return static_cast<const double*>(number.data)[i];
    case Dtype::float16:
      return widen(static_cast<const __half*>(number.data)[i]);
    case Dtype::bfloat16:
      return widen(static_cast<const __nv_bfloat16*>(number.data)[i]);
    case Dtype::int64:
      return static_cast<double>(static_cast<const int64_t*>(number.data)[i]);
  }
  return NAN;
}

template <int BYTES>
struct RawType;
template <>
struct RawType<1> {
  using type = uint8_t;
};
template <>
struct RawType<2> {
  using type = uint16_t;
};
template <>
struct RawType<4> {
  using type = uint32_t;
};
template <>
struct RawType<8> {
  using type = uint2;
};
template <>
struct RawType<16> {
  using type = uint4;
};
// One access of N elements where they are 16 bytes or fewer, else several of 16.
template <typename T, int N>
__device__ __forceinline__ void load(T (&out)[N], const T* p) {
  constexpr int BYTES = N * static_cast<int>(sizeof(T)), PART = BYTES < 16 ? BYTES : 16;
  using Raw = typename RawType<PART>::type;
  Raw raw[BYTES / PART];
#pragma unroll
  for (int i = 0; i < BYTES / PART; ++i) raw[i] = reinterpret_cast<const Raw*>(p)[i];
  memcpy(out, raw, BYTES);
}
// To global memory.
template <typename T, int N>
__device__ __forceinline__ void store(T* p, const T (&in)[N]) {
  constexpr int BYTES = N * static_cast<int>(sizeof(T)), PART = BYTES < 16 ? BYTES : 16;
  using Raw = typename RawType<PART>::type;
  Raw raw[BYTES / PART];
  memcpy(raw, in, BYTES);
#pragma unroll
  for (int i = 0; i < BYTES / PART; ++i) store_whole(reinterpret_cast<Raw*>(p) + i, raw[i]);
}

// N elements along the width; `together`: side by side and aligned.
template <typename T, int N>
__device__ __forceinline__ void load_row(T (&out)[N], const T* p, int64_t stride, bool together) {
  if (together) {
    load(out, p);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = p[i * stride];
  }
}

constexpr unsigned full_warp = 0xffffffffu;

// Lanes 2 m and 2 m + 1 (`odd`) hold a row each of a 2 x 2 matrix, and get a column. All lanes of the warp take part: a
// mask of the pair alone is not known to be one for the whole warp, and costs a search for the lanes that share it.
template <typename T>
__device__ __forceinline__ void transpose_pair(T& first, T& second, bool odd) {
  const T got = __shfl_xor_sync(full_warp, odd ? first : second, 1);
  first = odd ? got : first;
  second = odd ? second : got;
}

// N values of 8 bytes a lane: those of lanes 2 m and 2 m + 1 lie side by side, and of each 32-byte sector the first
// lane reads one half, the second the other, so that no request takes half sectors. `swap_pair` gives each its own.
template <int N>
__device__ __forceinline__ void load_pair(int64_t (&out)[N], const int64_t* own, bool odd) {
  const int64_t* const both = odd ? own - N : own;
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    int64_t half[2];
    load(half, both + i + 2 * odd);
    out[i] = half[0];
    out[i + 1] = half[1];
    load(half, both + N + i + 2 * odd);
    out[i + 2] = half[0];
    out[i + 3] = half[1];
  }
}
template <int N>
__device__ __forceinline__ void swap_pair(int32_t (&v)[N], bool odd) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    transpose_pair(v[i], v[i + 2], odd);
    transpose_pair(v[i + 1], v[i + 3], odd);
  }
}

// The other way round; `in` is left swapped.
template <int N>
__device__ __forceinline__ void store_pair(int64_t* own, int32_t (&in)[N], bool odd) {
  int64_t* const both = odd ? own - N : own;
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    transpose_pair(in[i], in[i + 2], odd);
    transpose_pair(in[i + 1], in[i + 3], odd);
    const int64_t first[2] = {in[i], in[i + 1]}, second[2] = {in[i + 2], in[i + 3]};
    store(both + i + 2 * odd, first);
    store(both + N + i + 2 * odd, second);
  }
}

// How a thread reads pixels and their classes.
enum class Layout {
  planes,  // neighbours along the width lie side by side: 16 bytes of pixels a class
  pixels,  // the classes of a pixel lie side by side (channels_last): one pixel, up to 16 bytes of classes an access
  any      // one element an access
};

// Eight pixels of eight classes would not fit the registers: 8 bytes a class then.
template <typename T, Layout L, int CLASSES>
constexpr int pixels_a_thread =
    L == Layout::planes ? (sizeof(T) == 2 && CLASSES == 8 ? 8 : 16) / static_cast<int>(sizeof(T)) : 1;

// Classes that are in registers at once where K is too large to unroll.
template <typename T, Layout L>
constexpr int chunk_classes = L == Layout::planes   ? 4
                              : L == Layout::pixels ? 16 / static_cast<int>(sizeof(T))
                                                    : 8;

// CLASSES: so many classes in registers; 0: any number, in chunks. `exact`: that many there are (in chunks: in each of
// them). Else fewer there may be, which each access and each term asks for at run time.
template <typename T_, Layout L, int CLASSES>
struct Shape {
  using T = T_;
  using F = Compute<T>;
  static constexpr Layout layout = L;
  static constexpr int classes = CLASSES;
  static constexpr int pixels = pixels_a_thread<T, L, CLASSES>;
  static constexpr int chunk = CLASSES == 0 ? chunk_classes<T, L> : CLASSES;
  static constexpr bool exact = L == Layout::pixels || (L == Layout::planes && 0 < CLASSES && CLASSES <= 4);

  // Whether class k of a chunk is there, of `count` classes from its first on.
  static constexpr __device__ __forceinline__ bool has(int k, int64_t count) { return exact || k < count; }
};

// Reads `count` of a chunk's classes; the rest are -inf, which adds exactly nothing.
template <typename S>
__device__ __forceinline__ void load_classes(typename S::F (&x)[S::chunk][S::pixels],
                                             const typename S::T* p,  // the first class of the first pixel
                                             int64_t class_stride, int64_t count) {
  using T = typename S::T;
  T raw[S::chunk][S::pixels];
  if constexpr (S::layout == Layout::pixels) {
    T row[S::chunk];
    load(row, p);
#pragma unroll
    for (int k = 0; k < S::chunk; ++k) x[k][0] = widen(row[k]);
  } else {
    const auto read = [&](auto there) {
#pragma unroll
      for (int k = 0; k < S::chunk; ++k) {
        if (there(k)) {
          load(raw[k], p + k * class_stride);
        } else {
#pragma unroll
          for (int i = 0; i < S::pixels; ++i) raw[k][i] = narrow<T>(-INFINITY);
        }
      }
    };
    if (S::classes == 0 && count >= S::chunk) {
      read([](int) { return true; });
    } else {
      read([&](int k) { return S::has(k, count); });
    }
#pragma unroll
    for (int k = 0; k < S::chunk; ++k) {
#pragma unroll
      for (int i = 0; i < S::pixels; ++i) x[k][i] = widen(raw[k][i]);
    }
  }
}

// Writes the classes that load_classes reads.
template <typename S>
__device__ __forceinline__ void store_classes(typename S::T* p, const typename S::F (&x)[S::chunk][S::pixels],
                                              int64_t class_stride, int64_t count) {
  if constexpr (S::layout == Layout::pixels) {
    typename S::T row[S::chunk];
#pragma unroll
    for (int k = 0; k < S::chunk; ++k) row[k] = narrow<typename S::T>(x[k][0]);
    store(p, row);
  } else {
#pragma unroll
    for (int k = 0; k < S::chunk; ++k) {
      typename S::T raw[S::pixels];
#pragma unroll
      for (int i = 0; i < S::pixels; ++i) raw[i] = narrow<typename S::T>(x[k][i]);
      if (S::has(k, count)) store(p + k * class_stride, raw);
    }
  }
}

// Whether every step along an axis of more than one element, but the one left out, is a multiple of `elements`.
inline bool steps_are_multiples(const Strides& s, int64_t batch, int64_t classes, const int64_t (&size)[3],
                                int64_t elements, Layout layout) {
  const auto fits = [&](int64_t length, int64_t stride) { return length <= 1 || stride % elements == 0; };
  return fits(batch, s.n) && fits(size[0], s.d) && fits(size[1], s.h) &&
         (layout == Layout::planes ? fits(classes, s.c) : fits(size[2], s.w));
}

// Whether each run of `elements` pixels along the width of [N, D, H, W] (c unused) is one aligned access.
inline bool rows_together(const void* p, const Strides& s, int64_t batch, const int64_t (&size)[3], int64_t elements,
                          int64_t bytes) {
  const int64_t access = elements * bytes < 16 ? elements * bytes : 16;
  return s.w == 1 && reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(access) == 0 &&
         steps_are_multiples(s, batch, 1, size, elements, Layout::planes);
}

// The layout that serves `p` with 16-byte accesses, or Layout::any.
template <typename T>
Layout layout_of(const void* p, const Strides& s, int64_t batch, int64_t classes, const Grid& grid) {
  if constexpr (sizeof(T) == 8) return Layout::any;
  constexpr int64_t vector = 16 / sizeof(T);
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (s.w == 1 && address % 16 == 0 && grid.size[2] % vector == 0 &&
      (grid.count[2] == 1 || grid.patch[2] % vector == 0) &&
      steps_are_multiples(s, batch, classes, grid.size, vector, Layout::planes)) {
    return Layout::planes;
  }
  const bool whole = classes == 4 || (classes >= 8 && classes % vector == 0);
  const int64_t width = classes < vector ? classes : vector;
  if (s.c == 1 && whole && address % (width * sizeof(T)) == 0 &&
      steps_are_multiples(s, batch, classes, grid.size, width, Layout::pixels)) {
    return Layout::pixels;
  }
  return Layout::any;
}

// Kernels that read more classes than fit registers more than once keep so few threads on a multiprocessor that what
// they have read is still in its caches (L1, and its share of L2) the second time.
constexpr int64_t cached_bytes = 1 << 18;

// Blocks a multiprocessor, at most `most`.
template <typename S>
int64_t resident_blocks(int64_t classes, int64_t threads, int64_t most) {
  if (S::classes > 0) return most;
  const int64_t blocks = cached_bytes / (threads * S::pixels * static_cast<int64_t>(sizeof(typename S::T)) * classes);
  return blocks < 1 ? 1 : blocks < most ? blocks : most;
}

// The layout for these kernels: where 16 bytes a class and thread are too much even for one block, one element.
template <typename T>
Layout layout_of_rereading(Layout layout, int64_t classes, int64_t threads) {
  return layout == Layout::planes && threads * 16 * classes > cached_bytes ? Layout::any : layout;
}

// Blocks of a kernel that walks over `steps` in a loop: all on the device at once, and at most so many a
// multiprocessor.
template <typename Kernel>
cudaError_t looping_grid(Kernel kernel, int64_t steps, int threads, int64_t most, int64_t* blocks) {
  int count = 1, room = 1;
  cudaError_t error = multiprocessors(&count);
  if (error == cudaSuccess) error = blocks_at_once(kernel, threads, &room);
  const int64_t needed = ceil_div(steps, threads), at_once = count * (room < most ? room : most);
  *blocks = needed < at_once ? needed : at_once;
  return error;
}

// Calls fn(Shape<...>{}) for the layout and the number of classes.
template <typename T, typename Fn>
cudaError_t with_shape(Layout layout, int64_t classes, const Fn& fn) {
  if constexpr (sizeof(T) == 8) {
    return fn(Shape<T, Layout::any, 0>{});
  } else {
    switch (layout) {
      case Layout::planes:
        if (classes == 2) return fn(Shape<T, Layout::planes, 2>{});
        if (classes == 3) return fn(Shape<T, Layout::planes, 3>{});
        if (classes == 4) return fn(Shape<T, Layout::planes, 4>{});
        if (classes <= 8) return fn(Shape<T, Layout::planes, 8>{});
        return fn(Shape<T, Layout::planes, 0>{});
      case Layout::pixels:
        if (classes == 4) return fn(Shape<T, Layout::pixels, 4>{});
        if (classes == 8) return fn(Shape<T, Layout::pixels, 8>{});
        return fn(Shape<T, Layout::pixels, 0>{});
      case Layout::any:
        if (classes <= 8) return fn(Shape<T, Layout::any, 8>{});
        return fn(Shape<T, Layout::any, 0>{});
    }
    return cudaErrorInvalidValue;
  }
}

// Calls fn(T{}) for the dtype of a tensor.
template <typename Fn>
cudaError_t with_dtype(Dtype dtype, const Fn& fn) {
  switch (dtype) {
    case Dtype::float32:
      return fn(float{});
    case Dtype::float64:
      return fn(double{});
    case Dtype::float16:
      return fn(__half{});
    case Dtype::bfloat16:
      return fn(__nv_bfloat16{});
    case Dtype::int64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace entmask::cuda
