// The gradient of the consistency loss: one launch, which reads the forward's sums and recomputes the softmax.
//
// Each block first turns the sums into two coefficients a class (q_k = own_k [label = k] + square_k p_k; with dice_each
// a class and region) and one a region, so that a pixel costs no division but its softmax. Beyond 8 classes a pixel's
// classes are read once for the softmax, once for sum p q and once to write (the later times from the cache).
#pragma once

#include "loss.cuh"

namespace entmask::cuda {

constexpr int backward_threads = 128;
constexpr int64_t backward_blocks_a_multiprocessor = 6;
// That the registers must leave room for.
template <typename S>
constexpr int backward_blocks_at_once = S::pixels > 4                             ? (S::classes == 0 ? 2 : 3)
                                        : S::layout == Layout::planes && S::exact ? 6
                                                                                  : 3;
constexpr int64_t cached_classes = 1024;  // whose coefficients are in shared memory; others are computed where needed

struct LossBackwardArguments {
  LossArguments loss;
  const double* sums;  // [4 + 3 K], with dice_each [4 + 6 K]
  const void* grad_total;
  const void* grad_ce_masked;
  const void* grad_ce_visible;
  const void* grad_dice;
  void* grad_logits;  // [N, K, D, H, W]
  Strides grad_logits_stride;
  bool dice_each;
  double mask_weight, visible_weight, ce_weight, dice_weight, smooth, denominator_offset;
};

template <typename F>
struct Coefficients {
  F own, square;
};

template <typename F>
__device__ __forceinline__ double grad_or_zero(const void* grad) {
  return grad == nullptr ? 0 : static_cast<double>(*static_cast<const F*>(grad));
}

// Of class k: c_k (-2 / (Z + smooth)) and 2 c_k (2 I + smooth) / (Z + smooth)^2, c_k = d(out)/d(D) / K, Z = Q + T; with
// dice_each those of a region (0: masked, 1: visible), else region is 0. No pixel uses those of a region without
// pixels. A Dice that nothing depends on, which may be NaN, has none.
template <typename F>
__device__ __forceinline__ Coefficients<F> dice_coefficients(const LossBackwardArguments& a, int64_t k, int region) {
  const int64_t classes = a.loss.classes;
  const double* const sums = a.sums + 4 + region * 3 * classes;
  double grad = grad_or_zero<F>(a.grad_dice) + grad_or_zero<F>(a.grad_total) * a.dice_weight;
  if (a.dice_each) grad *= region == 0 ? a.mask_weight : a.visible_weight;
  if (grad == 0) return {0, 0};
  const double c = grad / static_cast<double>(classes);
  const double total = sums[classes + k] + sums[2 * classes + k] + a.smooth;
  const double overlap = 2 * sums[k] + a.smooth;
  return {static_cast<F>(-2 * c / total), static_cast<F>(2 * c * overlap / total / total)};
}

// d(out)/d(ce of the region) / (sum w + offset), or 0 where the region's sum of w is 0.
template <typename F>
__device__ __forceinline__ F region_coefficient(const LossBackwardArguments& a, bool masked) {
  const double weight = a.sums[masked ? 1 : 3];
  const double own = grad_or_zero<F>(masked ? a.grad_ce_masked : a.grad_ce_visible);
  const double total = grad_or_zero<F>(a.grad_total) * a.ce_weight * (masked ? a.mask_weight : a.visible_weight);
  return weight == 0 ? 0 : static_cast<F>((own + total) / (weight + a.denominator_offset));
}

template <typename S>
__global__ void __launch_bounds__(backward_threads, backward_blocks_at_once<S>)
    loss_backward_kernel(LossBackwardArguments args) {
  wait_for_predecessor();
  using T = typename S::T;
  using F = typename S::F;
  constexpr int64_t cached = S::classes > 0 ? 2 * S::classes : cached_classes;
  __shared__ Coefficients<F> cache[cached];  // of class 0 in one region, in the other, of class 1 ...
  __shared__ F region[2];
  const LossArguments& a = args.loss;
  // Where there are many classes, one Dice of all pixels has the whole cache; else it is in the places of both regions.
  const int halved = S::classes > 0 || args.dice_each ? 1 : 0;
  for (int64_t i = threadIdx.x; i < cached; i += backward_threads) {
    const int64_t k = i >> halved;
    cache[i] = k < a.classes ? dice_coefficients<F>(args, k, args.dice_each ? i & 1 : 0) : Coefficients<F>{0, 0};
  }
  if (threadIdx.x < 2) region[threadIdx.x] = region_coefficient<F>(args, threadIdx.x == 1);
  __syncthreads();

  const int64_t stride = static_cast<int64_t>(gridDim.x) * backward_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * backward_threads + threadIdx.x; i < a.index.total; i += stride) {
    const PixelIndex::Position at = a.index.at(i);
    const T* logits = static_cast<const T*>(a.logits) + offset_of(a.logits_stride, at.n, at.d, at.h, at.w);
    T* out = static_cast<T*>(args.grad_logits) + offset_of(args.grad_logits_stride, at.n, at.d, at.h, at.w);
    int32_t label[S::pixels];
    RawLabels<S::pixels> labels;
    const uint8_t byte = load_masked(a, at);
    load_labels(labels, a, at);
    F x[S::chunk][S::pixels], max[S::pixels], scale[S::pixels], inner[S::pixels], entropy[S::pixels];
    if constexpr (S::classes > 0) load_classes<S>(x, logits, a.logits_stride.c, a.classes);
    narrow_labels(label, labels, a, at);
    const bool masked = byte != 0;
    const F of_region = region[masked];
    const int dice_region = args.dice_each && !masked ? 1 : 0;
    const auto coefficients = [&](int64_t k) {
      if constexpr (S::classes > 0) return cache[2 * k + dice_region];
      const int64_t i = (k << halved) + dice_region;
      if (i < cached) return cache[i];
      return k < a.classes ? dice_coefficients<F>(args, k, dice_region) : Coefficients<F>{0, 0};
    };
    const auto set = [&](int p, const Softmax<F>& r) {
      max[p] = r.max;
      scale[p] = r.scale();
      inner[p] = 0;
      entropy[p] = label[p] >= 0 ? of_region * weight_of<F>(a, label[p]) : 0;
    };
    // Adds p q of the chunk's classes, whose e^(x - m) or logits are in x and become p.
    const auto add_inner = [&](int64_t first) {
#pragma unroll
      for (int k = 0; k < S::chunk; ++k) {
        const Coefficients<F> c = coefficients(first + k);
#pragma unroll
        for (int p = 0; p < S::pixels; ++p) {
          if constexpr (S::classes == 0) x[k][p] = exponential(x[k][p] - max[p]);
          x[k][p] *= scale[p];
          inner[p] += x[k][p] * (c.square * x[k][p] + (label[p] == static_cast<int32_t>(first) + k ? c.own : 0));
        }
      }
    };
    // A w (p - [label = k]) + p (q - sum p q), from the p in x.
    const auto write = [&](int64_t first) {
#pragma unroll
      for (int k = 0; k < S::chunk; ++k) {
        const Coefficients<F> c = coefficients(first + k);
#pragma unroll
        for (int p = 0; p < S::pixels; ++p) {
          const F own = label[p] == static_cast<int32_t>(first) + k ? 1 : 0;
          const F q = c.square * x[k][p] + own * c.own;
          const F grad = entropy[p] * (x[k][p] - own) + x[k][p] * (q - inner[p]);
          x[k][p] = label[p] >= 0 ? grad : 0;
        }
      }
      store_classes<S>(out + first * args.grad_logits_stride.c, x, args.grad_logits_stride.c, a.classes - first);
    };

    if constexpr (S::classes > 0) {
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) {
        F d[S::chunk];
        set(p, exponentials<S>(x, d, p, a.classes));
      }
      add_inner(0);
      write(0);
    } else {
      Softmax<F> softmax[S::pixels];
      read_softmax<S>(softmax, x, logits, a.logits_stride.c, a.classes);
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) set(p, softmax[p]);
      for (int64_t first = 0; first < a.classes; first += S::chunk) {
        load_classes<S>(x, logits + first * a.logits_stride.c, a.logits_stride.c, a.classes - first);
        add_inner(first);
      }
      for (int64_t first = 0; first < a.classes; first += S::chunk) {
        load_classes<S>(x, logits + first * a.logits_stride.c, a.logits_stride.c, a.classes - first);
#pragma unroll
        for (int k = 0; k < S::chunk; ++k) {
#pragma unroll
          for (int p = 0; p < S::pixels; ++p) x[k][p] = exponential(x[k][p] - max[p]) * scale[p];
        }
        write(first);
      }
    }
  }
}

template <typename T>
cudaError_t launch_loss_backward(const LossBackwardParams& p, cudaStream_t stream) {
  const LossParams& loss = p.loss;
  Layout layout = layout_of<T>(loss.logits, loss.logits_stride, loss.batch, loss.classes, loss.grid);
  if (layout_of<T>(p.grad_logits, p.grad_logits_stride, loss.batch, loss.classes, loss.grid) != layout) {
    layout = Layout::any;
  }
  layout = layout_of_rereading<T>(layout, loss.classes, backward_threads);
  return with_shape<T>(layout, loss.classes, [&](auto shape) {
    using S = decltype(shape);
    const LossBackwardArguments a{
        loss_arguments<S>(loss), p.sums,           p.grad_total,           p.grad_ce_masked,
        p.grad_ce_visible,       p.grad_dice,      p.grad_logits,          p.grad_logits_stride,
        loss.dice_each,          loss.mask_weight, loss.visible_weight,    loss.ce_weight,
        loss.dice_weight,        loss.smooth,      loss.denominator_offset};
    int64_t blocks;
    const cudaError_t error =
        looping_grid(loss_backward_kernel<S>, a.loss.index.total, backward_threads,
                     resident_blocks<S>(loss.classes, backward_threads, backward_blocks_a_multiprocessor), &blocks);
    if (error != cudaSuccess) return error;
    return launch(loss_backward_kernel<S>, dim3(static_cast<unsigned>(blocks)), dim3(backward_threads), 0, stream, a);
  });
}

}  // namespace entmask::cuda
