// The gradient of the soft loss with respect to the logits: one launch, which recomputes both softmaxes. The formula
// stands at SoftLossBackwardParams.
//
// Beyond 8 classes a pixel's classes are read once for the softmaxes, with mse once for sum p (p - q), and once to
// write (the later times from the cache).
#pragma once

#include "soft_loss.cuh"

namespace entmask::cuda {

struct SoftBackwardArguments {
  SoftLossArguments loss;
  const double* sums;  // [2]
  const void* grad;
  void* grad_logits;  // [N, K, D, H, W]
  Strides grad_logits_stride;
};

template <typename S, bool MIXED>
__global__ void __launch_bounds__(soft_threads, S::pixels > 4 || sizeof(typename S::F) == 8 ? 2 : 3)
    soft_loss_backward_kernel(SoftBackwardArguments args) {
  wait_for_predecessor();
  using T = typename S::T;
  using F = typename S::F;
  __shared__ F shared_grad;  // of a pixel's distance
  const SoftLossArguments& a = args.loss;
  if (threadIdx.x == 0) {
    const double pixels = args.sums[1], grad = static_cast<double>(*static_cast<const F*>(args.grad));
    shared_grad = pixels > 0 ? static_cast<F>(grad / pixels) : 0;
  }
  __syncthreads();
  const F grad = shared_grad;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * soft_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * soft_threads + threadIdx.x; i < a.index.total; i += stride) {
    const PixelIndex::Position at = a.index.at(i);
    const int64_t x_at = a.logits.offset(at), y_at = a.target.offset(at);
    const int64_t out_at = offset_of(args.grad_logits_stride, at.n, at.d, at.h, at.w);
    bool counts[S::pixels];
    F x[S::chunk][S::pixels], y[S::chunk][S::pixels];
    const auto write = [&](int64_t first) {
      const int64_t offset = out_at + first * args.grad_logits_stride.c;
      if constexpr (MIXED) {
#pragma unroll
        for (int k = 0; k < S::chunk; ++k) {
          if (k < a.classes - first) {
            write_element(args.grad_logits, a.logits.dtype, offset + k * args.grad_logits_stride.c, x[k][0]);
          }
        }
      } else {
        store_classes<S>(static_cast<T*>(args.grad_logits) + offset, x, args.grad_logits_stride.c, a.classes - first);
      }
    };
    // From p in x and p - q in y.
    const auto gradient = [&](int k, int p, F dot) {
      const F of_class = a.kl ? grad * y[k][p] : 2 * grad * x[k][p] * (y[k][p] - dot);
      x[k][p] = counts[p] ? of_class : 0;
    };

    if constexpr (S::classes > 0) {
      load_operand<S, MIXED>(x, a.logits, x_at, a.classes);
      load_operand<S, MIXED>(y, a.target, y_at, a.classes);
      read_where(counts, a, at);
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) {
        F d[S::chunk], dot = 0;
        const F x_scale = exponentials<S>(x, d, p, a.classes).scale(),
                y_scale = exponentials<S>(y, d, p, a.classes).scale();
#pragma unroll
        for (int k = 0; k < S::chunk; ++k) {
          y[k][p] = soft_difference(x[k][p], x_scale, y[k][p], y_scale);
          x[k][p] *= x_scale;
          dot += x[k][p] * y[k][p];
        }
#pragma unroll
        for (int k = 0; k < S::chunk; ++k) gradient(k, p, dot);
      }
      write(0);
    } else {
      const auto of_x = softmax_of_many<S, MIXED>(a.logits, x_at, a.classes);
      const auto of_y = softmax_of_many<S, MIXED>(a.target, y_at, a.classes);
      read_where(counts, a, at);
      F dot[S::pixels] = {}, lost[S::pixels] = {};
      const auto read = [&](int64_t first) {
        load_operand<S, MIXED>(x, a.logits, x_at + first * a.logits.stride.c, a.classes - first);
        load_operand<S, MIXED>(y, a.target, y_at + first * a.target.stride.c, a.classes - first);
#pragma unroll
        for (int k = 0; k < S::chunk; ++k) {
#pragma unroll
          for (int p = 0; p < S::pixels; ++p) {
            const F e = exponential(x[k][p] - of_x.max[p]), f = exponential(y[k][p] - of_y.max[p]);
            y[k][p] = soft_difference(e, of_x.scale[p], f, of_y.scale[p]);
            x[k][p] = e * of_x.scale[p];
          }
        }
      };
      if (!a.kl) {
        for (int64_t first = 0; first < a.classes; first += S::chunk) {
          read(first);
#pragma unroll
          for (int p = 0; p < S::pixels; ++p) {
            F sum = 0;
#pragma unroll
            for (int k = 0; k < S::chunk; ++k) sum += x[k][p] * y[k][p];
            add_compensated(dot[p], lost[p], sum);
          }
        }
      }
      for (int64_t first = 0; first < a.classes; first += S::chunk) {
        read(first);
#pragma unroll
        for (int k = 0; k < S::chunk; ++k) {
#pragma unroll
          for (int p = 0; p < S::pixels; ++p) gradient(k, p, dot[p]);
        }
        write(first);
      }
    }
  }
}

inline cudaError_t launch_soft_backward(const SoftLossBackwardParams& p, cudaStream_t stream) {
  const SoftLossParams& loss = p.loss;
  const auto layout = [&](auto zero) {
    using T = decltype(zero);
    const Grid grid = whole_image(loss.size);
    const Layout of_inputs = soft_layout<T>(loss);
    const Layout of_grad = layout_of<T>(p.grad_logits, p.grad_logits_stride, loss.batch, loss.classes, grid);
    return of_grad == of_inputs ? of_inputs : Layout::any;
  };
  return with_soft_shape(loss, layout, [&](auto shape, auto mixed) {
    using S = decltype(shape);
    const SoftBackwardArguments a{soft_loss_arguments<S>(loss), p.sums, p.grad, p.grad_logits, p.grad_logits_stride};
    int64_t blocks;
    const auto kernel = soft_loss_backward_kernel<S, decltype(mixed)::value>;
    const cudaError_t error = soft_blocks<S>(loss, kernel, &blocks);
    if (error != cudaSuccess) return error;
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(soft_threads), 0, stream, a);
  });
}

}  // namespace entmask::cuda
