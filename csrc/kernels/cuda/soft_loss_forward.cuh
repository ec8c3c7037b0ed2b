// The mean distance of two softmaxes: one pass over both, then one small block that adds up and writes the mean.
//
//   mse: sum_k (p_k - q_k)^2
//   kl:  sum_k q_k (ln q_k - ln p_k) = sum_k q_k ((y_k - max y) - (x_k - max x)) + ln U_x - ln U_y, U = sum_k e^(. -
//   max)
//
// A grid of a few blocks a multiprocessor walks over the pixels. A thread adds what it reads at once in single
// precision, then in double; threads, warps and blocks are added in a fixed order. No atomics. Beyond 8 classes a pixel
// is read once for the maxima and sums, and again, from the cache, for the distance.
#pragma once

#include "soft_loss.cuh"
#include "sums.cuh"

namespace entmask::cuda {

constexpr int soft_sums = 2;  // the sum over the pixels, their number

struct SoftForwardArguments {
  SoftLossArguments loss;
  double* partials;  // [2, blocks]
};

template <typename S, bool MIXED>
__global__ void __launch_bounds__(soft_threads, sizeof(typename S::F) == 8 ? 2 : 3)
    soft_loss_forward_kernel(SoftForwardArguments args) {
  wait_for_predecessor();
  using F = typename S::F;
  const SoftLossArguments& a = args.loss;
  double total = 0;
  int64_t pixels = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * soft_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * soft_threads + threadIdx.x; i < a.index.total; i += stride) {
    const PixelIndex::Position at = a.index.at(i);
    const int64_t x_at = a.logits.offset(at), y_at = a.target.offset(at);
    bool counts[S::pixels];
    F x[S::chunk][S::pixels], y[S::chunk][S::pixels], distance[S::pixels];
    if constexpr (S::classes > 0) {
      load_operand<S, MIXED>(x, a.logits, x_at, a.classes);
      load_operand<S, MIXED>(y, a.target, y_at, a.classes);
      read_where(counts, a, at);
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) {
        F dx[S::chunk], dy[S::chunk];
        const Softmax<F> of_x = exponentials<S>(x, dx, p, a.classes), of_y = exponentials<S>(y, dy, p, a.classes);
        const F x_scale = of_x.scale(), y_scale = of_y.scale();
        F sum = 0;
        if (a.kl) {
#pragma unroll
          for (int k = 0; k < S::chunk; ++k) sum += kl_term(y[k][p], dx[k], dy[k]);
          sum = sum * y_scale + (log_one_plus(of_x.others) - log_one_plus(of_y.others)) + of_x.poison();
        } else {
#pragma unroll
          for (int k = 0; k < S::chunk; ++k) {
            const F d = soft_difference(x[k][p], x_scale, y[k][p], y_scale);
            sum += d * d;
          }
        }
        distance[p] = sum;
      }
    } else {
      const auto of_x = softmax_of_many<S, MIXED>(a.logits, x_at, a.classes);
      const auto of_y = softmax_of_many<S, MIXED>(a.target, y_at, a.classes);
      read_where(counts, a, at);
      F lost[S::pixels];
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) distance[p] = lost[p] = 0;
      for (int64_t first = 0; first < a.classes; first += S::chunk) {
        load_operand<S, MIXED>(x, a.logits, x_at + first * a.logits.stride.c, a.classes - first);
        load_operand<S, MIXED>(y, a.target, y_at + first * a.target.stride.c, a.classes - first);
#pragma unroll
        for (int p = 0; p < S::pixels; ++p) {
          F sum = 0;
#pragma unroll
          for (int k = 0; k < S::chunk; ++k) {
            const F dx = x[k][p] - of_x.max[p], dy = y[k][p] - of_y.max[p], f = exponential(dy);
            if (a.kl) {
              sum += kl_term(f * of_y.scale[p], dx, dy);
            } else {
              const F d = soft_difference(exponential(dx), of_x.scale[p], f, of_y.scale[p]);
              sum += d * d;
            }
          }
          add_compensated(distance[p], lost[p], sum);
          lost[p] = lost[p] == lost[p] ? lost[p] : 0;  // an infinite sum has lost nothing
        }
      }
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) {
        if (a.kl) distance[p] += of_x.log_sum[p] - of_y.log_sum[p];
      }
    }
    F sum = 0;
#pragma unroll
    for (int p = 0; p < S::pixels; ++p) {
      // Rounding may leave a distance below 0; NaN stays.
      sum += counts[p] ? (distance[p] < 0 ? 0 : distance[p]) : 0;
      pixels += counts[p] ? 1 : 0;
    }
    total += static_cast<double>(sum);
  }

  constexpr int warps = soft_threads / 32;
  __shared__ double warp_sum[soft_sums][warps];
  total = sum_lanes(total);
  const double number = sum_lanes(static_cast<double>(pixels));
  if ((threadIdx.x & 31) == 0) {
    warp_sum[0][threadIdx.x / 32] = total;
    warp_sum[1][threadIdx.x / 32] = number;
  }
  __syncthreads();
  if (threadIdx.x < soft_sums) {
    args.partials[threadIdx.x * static_cast<int64_t>(gridDim.x) + blockIdx.x] = pairwise_sum(warp_sum[threadIdx.x]);
  }
}

struct SoftFinishArguments {
  const double* partials;  // [2, blocks]
  double* sums;            // [2]
  void* mean;
  int64_t blocks;
};

template <typename F>
__global__ void __launch_bounds__(32 * soft_sums, 1) soft_loss_finish_kernel(SoftFinishArguments a) {
  wait_for_predecessor();
  __shared__ double sums[soft_sums];
  const int lane = static_cast<int>(threadIdx.x & 31), value = static_cast<int>(threadIdx.x / 32);
  const double sum = sum_row(a.partials + value * a.blocks, a.blocks);
  if (lane == 0) a.sums[value] = sums[value] = sum;
  __syncthreads();
  if (threadIdx.x == 0) *static_cast<F*>(a.mean) = sums[1] > 0 ? static_cast<F>(sums[0] / sums[1]) : 0;
}

// Calls fn as with_soft_shape does.
template <typename Fn>
cudaError_t with_forward_shape(const SoftLossParams& p, const Fn& fn) {
  return with_soft_shape(p, [&](auto zero) { return soft_layout<decltype(zero)>(p); }, fn);
}

inline size_t soft_forward_bytes(const SoftLossParams& p) {
  int64_t blocks = 0;
  with_forward_shape(p, [&](auto shape, auto mixed) {
    return soft_blocks<decltype(shape)>(p, soft_loss_forward_kernel<decltype(shape), decltype(mixed)::value>, &blocks);
  });
  return static_cast<size_t>(blocks) * soft_sums * sizeof(double);
}

inline cudaError_t launch_soft_forward(const SoftLossForwardParams& p, double* workspace, cudaStream_t stream) {
  int64_t blocks = 0;
  const cudaError_t error = with_forward_shape(p.loss, [&](auto shape, auto mixed) {
    using S = decltype(shape);
    const auto kernel = soft_loss_forward_kernel<S, decltype(mixed)::value>;
    const cudaError_t failed = soft_blocks<S>(p.loss, kernel, &blocks);
    if (failed != cudaSuccess || blocks == 0) return failed;
    const SoftForwardArguments a{soft_loss_arguments<S>(p.loss), workspace};
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(soft_threads), 0, stream, a);
  });
  if (error != cudaSuccess) return error;
  const SoftFinishArguments a{workspace, p.sums, p.mean, blocks};
  const bool is_double = p.loss.dtype == Dtype::float64 || p.loss.target_dtype == Dtype::float64;
  return launch(is_double ? soft_loss_finish_kernel<double> : soft_loss_finish_kernel<float>, dim3(1),
                dim3(32 * soft_sums), 0, stream, a);
}

}  // namespace entmask::cuda
