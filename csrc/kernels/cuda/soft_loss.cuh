// What the forward and the backward of the soft loss share: reading logits and target together, which may differ in
// dtype, and the pixels that count.
#pragma once

#include "launch.h"
#include "math.cuh"

namespace entmask::cuda {

constexpr int soft_threads = 128;
constexpr int64_t soft_blocks_a_multiprocessor = 4;

// A tensor [N, K, D, H, W]. Its dtype is looked at only where the two differ.
struct SoftOperand {
  const void* data;
  Strides stride;
  Dtype dtype;

  __device__ __forceinline__ int64_t offset(const PixelIndex::Position& at) const {
    return offset_of(stride, at.n, at.d, at.h, at.w);
  }
};

struct SoftLossArguments {
  SoftOperand logits, target;
  const bool* where;  // [N, D, H, W] or nullptr
  Strides where_stride;
  bool where_rows;  // a thread's pixels lie side by side, aligned
  bool kl;
  int64_t classes;
  PixelIndex index;
};

template <typename S>
SoftLossArguments soft_loss_arguments(const SoftLossParams& p) {
  return {{p.logits, p.logits_stride, p.dtype},
          {p.target, p.target_stride, p.target_dtype},
          p.where,
          p.where_stride,
          rows_together(p.where, p.where_stride, p.batch, p.size, S::pixels, 1),
          p.kl,
          p.classes,
          PixelIndex(p.batch, p.size, S::pixels)};
}

template <typename F>
__device__ __forceinline__ F read_element(const SoftOperand& from, int64_t i) {
  switch (from.dtype) {
    case Dtype::float64:
      return static_cast<F>(static_cast<const double*>(from.data)[i]);
    case Dtype::float16:
      return widen(static_cast<const __half*>(from.data)[i]);
    case Dtype::bfloat16:
      return widen(static_cast<const __nv_bfloat16*>(from.data)[i]);
    default:
      return static_cast<const float*>(from.data)[i];
  }
}
template <typename F>
__device__ __forceinline__ void write_element(void* to, Dtype dtype, int64_t i, F value) {
  switch (dtype) {
    case Dtype::float64:
      static_cast<double*>(to)[i] = value;
      return;
    case Dtype::float16:
      static_cast<__half*>(to)[i] = narrow<__half>(static_cast<float>(value));
      return;
    case Dtype::bfloat16:
      static_cast<__nv_bfloat16*>(to)[i] = narrow<__nv_bfloat16>(static_cast<float>(value));
      return;
    default:
      static_cast<float*>(to)[i] = static_cast<float>(value);
  }
}

// load_classes of an operand from an element on. MIXED: the operands' dtypes differ, S is of the compute dtype and
// reads one element at a time.
template <typename S, bool MIXED>
__device__ __forceinline__ void load_operand(typename S::F (&x)[S::chunk][S::pixels], const SoftOperand& from,
                                             int64_t offset, int64_t count) {
  if constexpr (MIXED) {
#pragma unroll
    for (int k = 0; k < S::chunk; ++k) {
      x[k][0] = k < count ? read_element<typename S::F>(from, offset + k * from.stride.c) : -INFINITY;
    }
  } else {
    load_classes<S>(x, static_cast<const typename S::T*>(from.data) + offset, from.stride.c, count);
  }
}

// Which of the thread's pixels count.
template <int N>
__device__ __forceinline__ void read_where(bool (&counts)[N], const SoftLossArguments& a,
                                           const PixelIndex::Position& at) {
  uint8_t row[N];
  if (a.where != nullptr) {
    load_row(row, reinterpret_cast<const uint8_t*>(a.where) + offset_of(a.where_stride, at.n, at.d, at.h, at.w),
             a.where_stride.w, a.where_rows);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) counts[i] = a.where == nullptr || row[i] != 0;
}

// The maximum and 1 / sum of e^(x - m) of the thread's pixels, and ln of that sum, where there are many classes.
template <typename F, int N>
struct SoftmaxOfMany {
  F max[N], scale[N], log_sum[N];
};
template <typename S, bool MIXED>
__device__ __forceinline__ SoftmaxOfMany<typename S::F, S::pixels> softmax_of_many(const SoftOperand& from,
                                                                                   int64_t offset, int64_t classes) {
  using F = typename S::F;
  SoftmaxStream<F> stream[S::pixels];
  for (int64_t first = 0; first < classes; first += S::chunk) {
    F x[S::chunk][S::pixels];
    load_operand<S, MIXED>(x, from, offset + first * from.stride.c, classes - first);
    add_classes(stream, x, static_cast<int32_t>(first));
  }
  SoftmaxOfMany<F, S::pixels> out;
#pragma unroll
  for (int i = 0; i < S::pixels; ++i) {
    const Softmax<F> r = stream[i].finish();
    out.max[i] = r.max;
    out.scale[i] = r.scale();
    out.log_sum[i] = log_one_plus(r.others) + r.poison();
  }
  return out;
}

// p - q of a class from e^(x - m), e^(y - m) and 1 / their sums: exactly 0 where the logits are the same, which one
// product fused with the difference would leave a rounding off.
template <typename F>
__device__ __forceinline__ F soft_difference(F e, F x_scale, F f, F y_scale) {
  return rounded_product(e, x_scale) - rounded_product(f, y_scale);
}

// A class's q_k (ln q_k - ln p_k), but for the sums' logarithms, over their scale: f = e^dy. Nothing where q_k is 0;
// the difference is infinite or NaN where a class cannot be.
template <typename F>
__device__ __forceinline__ F kl_term(F f, F dx, F dy) {
  return f == 0 ? 0 : f * (dy - dx);
}

// The layout that serves all of the tensors of a dtype.
template <typename T>
Layout soft_layout(const SoftLossParams& p) {
  const auto of = [&](const void* data, const Strides& stride) {
    return layout_of<T>(data, stride, p.batch, p.classes, whole_image(p.size));
  };
  const Layout layout = of(p.logits, p.logits_stride);
  return of(p.target, p.target_stride) == layout ? layout : Layout::any;
}

// Calls fn(Shape<...>{}, whether the dtypes differ). `layout`: what all tensors of the dtype T agree on.
template <typename OfDtype, typename Fn>
cudaError_t with_soft_shape(const SoftLossParams& p, const OfDtype& layout, const Fn& fn) {
  if (p.dtype != p.target_dtype) {
    using Mixed = std::true_type;
    if (p.dtype == Dtype::float64 || p.target_dtype == Dtype::float64) {
      return fn(Shape<double, Layout::any, 0>{}, Mixed{});
    }
    return p.classes <= 8 ? fn(Shape<float, Layout::any, 8>{}, Mixed{}) : fn(Shape<float, Layout::any, 0>{}, Mixed{});
  }
  return with_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    // Two tensors are read again where there are many classes.
    const Layout chosen = layout_of_rereading<T>(layout(zero), 2 * p.classes, soft_threads);
    return with_shape<T>(chosen, p.classes, [&](auto shape) { return fn(shape, std::false_type{}); });
  });
}

template <typename S, typename Kernel>
cudaError_t soft_blocks(const SoftLossParams& p, Kernel kernel, int64_t* blocks) {
  return looping_grid(kernel, PixelIndex(p.batch, p.size, S::pixels).total, soft_threads,
                      resident_blocks<S>(2 * p.classes, soft_threads, soft_blocks_a_multiprocessor), blocks);
}

}  // namespace entmask::cuda
