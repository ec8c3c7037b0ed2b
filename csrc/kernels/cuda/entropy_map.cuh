// Uncertainty of each pixel, and the gradient of uncertainties (or of their patch means) with respect to the logits.
//
// Of each kernel there is one for the entropy and one for what the two largest probabilities tell (top_two_*): least
// confidence and margin, told apart at run time.
//
// A thread takes one vector of pixels (16 bytes a class). The backward recomputes the softmax, so that nothing of the
// size of the logits is saved; more than 8 classes are read twice, the second time from the cache.
#pragma once

#include "launch.h"
#include "math.cuh"

namespace entmask::cuda {

constexpr int map_threads = 128;
constexpr int64_t backward_blocks = 8;  // a multiprocessor, at most

struct MapArguments {
  const void* logits;  // [N, K, D, H, W]
  void* entropy;       // [N, D, H, W]
  Strides stride;
  int64_t classes;
  PixelIndex index;
  double scale;  // from nats, 1 - p1 or 1 - (p1 - p2) to [0, 1]; 0: nats as they are
  bool margin;
};

template <typename S, bool ENTROPY>
__device__ __forceinline__ void map_pixels(const MapArguments& a) {
  using T = typename S::T;
  using F = typename S::F;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * map_threads + threadIdx.x;
  if (i >= a.index.total) return;
  const PixelIndex::Position at = a.index.at(i);
  F x[S::chunk][S::pixels], entropy[S::pixels];
  Softmax<F> softmax[S::pixels];
  read_softmax<S>(softmax, x, static_cast<const T*>(a.logits) + offset_of(a.stride, at.n, at.d, at.h, at.w), a.stride.c,
                  a.classes);
#pragma unroll
  for (int p = 0; p < S::pixels; ++p) {
    entropy[p] = ENTROPY ? softmax[p].entropy() : softmax[p].doubt(a.margin);
    if (a.scale != 0) entropy[p] = clamp_unit(entropy[p] * static_cast<F>(a.scale));
  }
  store(static_cast<F*>(a.entropy) + i * S::pixels, entropy);
}

template <typename S>
__global__ void __launch_bounds__(map_threads, 4) entropy_map_kernel(MapArguments a) {
  wait_for_predecessor();
  map_pixels<S, true>(a);
}
template <typename S>
__global__ void __launch_bounds__(map_threads, 4) top_two_map_kernel(MapArguments a) {
  wait_for_predecessor();
  map_pixels<S, false>(a);
}

struct MapBackwardArguments {
  const void* logits;  // [N, K, D, H, W]
  const void* grad;    // [N, D, H, W] or [N, Gd, Gh, Gw], float32 (float64)
  void* grad_logits;   // [N, K, D, H, W]
  Strides stride, grad_stride, grad_logits_stride;
  int64_t classes;
  PixelIndex index;
  Divider patch[3];
  int32_t size[3];
  bool pooled;
  bool grad_rows;  // a thread's gradients lie side by side, aligned
  bool margin;
  double scale;  // from nats, 1 - p1 or 1 - (p1 - p2) to what was returned
};

// The gradient that came for a thread's pixels, times scale. Pooled, they are all of one patch.
template <typename F, int N>
__device__ __forceinline__ void read_map_grad(F (&out)[N], const MapBackwardArguments& a,
                                              const PixelIndex::Position& at) {
  const F* grad = static_cast<const F*>(a.grad);
  const F scale = static_cast<F>(a.scale);
  if (!a.pooled) {
    load_row(out, grad + offset_of(a.grad_stride, at.n, at.d, at.h, at.w), a.grad_stride.w, a.grad_rows);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] *= scale;
    return;
  }
  const int32_t position[3] = {at.d, at.h, at.w};
  int32_t patch[3];
  F pixels = 1;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    patch[axis] = a.patch[axis].divide(position[axis]);
    const int32_t left = a.size[axis] - patch[axis] * a.patch[axis].divisor;
    pixels *= static_cast<F>(left < a.patch[axis].divisor ? left : a.patch[axis].divisor);
  }
  const F value = grad[offset_of(a.grad_stride, at.n, patch[0], patch[1], patch[2])] * scale / pixels;
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = value;
}

// dH/dx_j = -p_j (ln p_j + H) = -e_j / Z (d_j - s / Z), d_j = x_j - m, e_j = e^d_j, Z = 1 + z
template <typename F>
struct EntropyGradient {
  F factor, mean;

  EntropyGradient() = default;
  __device__ __forceinline__ EntropyGradient(const Softmax<F>& r, bool, F grad) {
    const F scale = r.scale();
    mean = r.dot * scale;
    factor = -grad * scale;
  }
  __device__ __forceinline__ F operator()(int32_t, F e, F d) const { return factor * (times_log(e, d) - e * mean); }
};

// d(1 - p1)/dx_j = (1 / Z^2) (-z for the label, else e_j)
// d(1 - p1 + p2)/dx_j = (1 / Z^2) (-(z + e2) for the label, else e_j (1 - e2), and e2 Z more for the class of p2)
template <typename F>
struct TopTwoGradient {
  F factor, of_label, of_all, of_next;
  int32_t label, next;

  TopTwoGradient() = default;
  __device__ __forceinline__ TopTwoGradient(const Softmax<F>& r, bool margin, F grad) : label(r.label), next(r.next) {
    const F e2 = margin ? r.second_exponential() : 0, scale = r.scale();
    factor = grad * scale * scale;
    of_label = -(r.others + e2);
    of_all = 1 - e2;
    of_next = e2 * (1 + r.others);
  }
  __device__ __forceinline__ F operator()(int32_t k, F e, F) const {
    return factor * (k == label ? of_label : e * of_all + (k == next ? of_next : 0));
  }
};

template <typename S, typename Gradient>
__device__ __forceinline__ void map_gradients(const MapBackwardArguments& a) {
  using T = typename S::T;
  using F = typename S::F;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * map_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * map_threads + threadIdx.x; i < a.index.total; i += stride) {
    const PixelIndex::Position at = a.index.at(i);
    const T* logits = static_cast<const T*>(a.logits) + offset_of(a.stride, at.n, at.d, at.h, at.w);
    T* out = static_cast<T*>(a.grad_logits) + offset_of(a.grad_logits_stride, at.n, at.d, at.h, at.w);
    F x[S::chunk][S::pixels], grad[S::pixels];
    if constexpr (S::classes > 0) {
      load_classes<S>(x, logits, a.stride.c, a.classes);
      read_map_grad(grad, a, at);
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) {
        F d[S::chunk];
        const Gradient gradient(exponentials<S>(x, d, p, a.classes), a.margin, grad[p]);
#pragma unroll
        for (int k = 0; k < S::chunk; ++k) x[k][p] = gradient(k, x[k][p], d[k]);
      }
      store_classes<S>(out, x, a.grad_logits_stride.c, a.classes);
    } else {
      Softmax<F> softmax[S::pixels];
      Gradient gradient[S::pixels];
      read_softmax<S>(softmax, x, logits, a.stride.c, a.classes);
      read_map_grad(grad, a, at);
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) gradient[p] = Gradient(softmax[p], a.margin, grad[p]);
      for (int64_t first = 0; first < a.classes; first += S::chunk) {
        load_classes<S>(x, logits + first * a.stride.c, a.stride.c, a.classes - first);
#pragma unroll
        for (int k = 0; k < S::chunk; ++k) {
#pragma unroll
          for (int p = 0; p < S::pixels; ++p) {
            const F d = x[k][p] - softmax[p].max;
            x[k][p] = gradient[p](static_cast<int32_t>(first) + k, exponential(d), d);
          }
        }
        store_classes<S>(out + first * a.grad_logits_stride.c, x, a.grad_logits_stride.c, a.classes - first);
      }
    }
  }
}

// Blocks a multiprocessor that the registers must leave room for.
template <typename S>
constexpr int entropy_backward_blocks = S::layout == Layout::planes && S::classes > 0 && sizeof(typename S::T) == 2 ? 5
                                                                                                                    : 3;

template <typename S>
__global__ void __launch_bounds__(map_threads, entropy_backward_blocks<S>)
    entropy_backward_kernel(MapBackwardArguments a) {
  wait_for_predecessor();
  map_gradients<S, EntropyGradient<typename S::F>>(a);
}
template <typename S>
__global__ void __launch_bounds__(map_threads, 3) top_two_backward_kernel(MapBackwardArguments a) {
  wait_for_predecessor();
  map_gradients<S, TopTwoGradient<typename S::F>>(a);
}

template <typename T>
cudaError_t launch_entropy_map(const EntropyMapParams& p, cudaStream_t stream) {
  Layout layout = layout_of<T>(p.logits, p.logits_stride, p.batch, p.classes, whole_image(p.size));
  if (layout == Layout::planes && reinterpret_cast<uintptr_t>(p.entropy) % 16 != 0) layout = Layout::any;
  return with_shape<T>(layout, p.classes, [&](auto shape) {
    using S = decltype(shape);
    const bool entropy = p.uncertainty == Uncertainty::entropy;
    const MapArguments a{p.logits,
                         p.entropy,
                         p.logits_stride,
                         p.classes,
                         PixelIndex(p.batch, p.size, S::pixels),
                         !entropy      ? top_two_scale(p.uncertainty, p.classes)
                         : p.normalize ? 1 / std::log(static_cast<double>(p.classes))
                                       : 0,
                         p.uncertainty == Uncertainty::margin};
    const dim3 blocks(static_cast<unsigned>(ceil_div(a.index.total, map_threads)));
    return launch(entropy ? entropy_map_kernel<S> : top_two_map_kernel<S>, blocks, dim3(map_threads), 0, stream, a);
  });
}

template <typename T>
cudaError_t launch_entropy_backward(const EntropyBackwardParams& p, cudaStream_t stream) {
  Layout layout = layout_of<T>(p.logits, p.logits_stride, p.batch, p.classes, p.grid);
  if (layout_of<T>(p.grad_logits, p.grad_logits_stride, p.batch, p.classes, p.grid) != layout) layout = Layout::any;
  layout = layout_of_rereading<T>(layout, p.classes, map_threads);
  return with_shape<T>(layout, p.classes, [&](auto shape) {
    using S = decltype(shape);
    const Grid& g = p.grid;
    const auto patch = [&](int axis) { return Divider(g.patch[axis] < g.size[axis] ? g.patch[axis] : g.size[axis]); };
    const bool entropy = p.uncertainty == Uncertainty::entropy;
    const MapBackwardArguments a{
        p.logits,
        p.grad,
        p.grad_logits,
        p.logits_stride,
        p.grad_stride,
        p.grad_logits_stride,
        p.classes,
        PixelIndex(p.batch, g.size, S::pixels),
        {patch(0), patch(1), patch(2)},
        {static_cast<int32_t>(g.size[0]), static_cast<int32_t>(g.size[1]), static_cast<int32_t>(g.size[2])},
        p.pooled,
        rows_together(p.grad, p.grad_stride, p.batch, g.size, S::pixels, sizeof(typename S::F)),
        p.uncertainty == Uncertainty::margin,
        !entropy      ? top_two_scale(p.uncertainty, p.classes)
        : p.normalize ? 1 / std::log(static_cast<double>(p.classes))
                      : 1};
    const auto kernel = entropy ? entropy_backward_kernel<S> : top_two_backward_kernel<S>;
    int64_t blocks;
    const cudaError_t error = looping_grid(kernel, a.index.total, map_threads,
                                           resident_blocks<S>(p.classes, map_threads, backward_blocks), &blocks);
    if (error != cudaSuccess) return error;
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(map_threads), 0, stream, a);
  });
}

}  // namespace entmask::cuda
