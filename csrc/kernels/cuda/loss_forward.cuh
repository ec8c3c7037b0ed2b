// The sums of the consistency loss: one pass over the logits, then one small block that adds up and writes the outputs.
//
// A grid of a few blocks a multiprocessor walks over the pixels. A thread adds a few pixels in single precision, its
// warp adds these, and one lane a sum carries on in double; then warps, then blocks are added, all in a fixed order. No
// atomics. Up to 8 classes everything is in registers. Beyond, softmax takes a pass over the classes and the sums
// another (from the cache), and a warp's sums a class lie in its own row of the workspace.
#pragma once

#include "loss.cuh"

namespace entmask::cuda {

constexpr int loss_threads = 128, loss_warps = loss_threads / 32;
constexpr int loss_blocks_a_multiprocessor = 4;

struct LossForwardArguments {
  LossArguments loss;
  double* partials;   // [4 + 3 K, blocks]
  double* warp_sums;  // [blocks * loss_warps, 3, K]; more than 8 classes only
};

// Cross entropy of one pixel (label -1: none), added to sums [w l of M, w of M, w l of V, w of V].
template <typename F>
__device__ __forceinline__ void add_cross_entropy(F (&sums)[4], const LossArguments& a, const Softmax<F>& r, F logit,
                                                  int32_t label, bool masked) {
  const F weight = label < 0 ? 0 : weight_of<F>(a, label);
  const F loss = weight == 0 ? 0 : weight * (log_one_plus(r.others) - (logit - r.max) + r.poison());
  sums[0] += masked ? loss : 0;
  sums[1] += masked ? weight : 0;
  sums[2] += masked ? 0 : loss;
  sums[3] += masked ? 0 : weight;
}

template <typename S>
__global__ void __launch_bounds__(loss_threads, S::classes > 4 ? 3 : loss_blocks_a_multiprocessor)
    loss_registers_kernel(LossForwardArguments args) {
  using T = typename S::T;
  using F = typename S::F;
  constexpr int K = S::classes, values = K <= 4 ? 16 : 32, lanes_a_value = 32 / values;
  constexpr int steps_a_flush = S::pixels > 4 ? 1 : S::pixels > 1 ? 2 : 8;  // about 8 pixels
  static_assert(4 + 3 * K <= values, "a lane's sums are spread over the warp");
  __shared__ double warp_sum[loss_warps][values];
  const LossArguments& a = args.loss;
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  double total = 0;  // of value lane / lanes_a_value
  const int64_t stride = static_cast<int64_t>(gridDim.x) * loss_threads;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * loss_threads; base < a.index.total;) {
    F entropy[4] = {}, product[K] = {}, square[K] = {}, count[K] = {};
    for (int step = 0; step < steps_a_flush && base < a.index.total; ++step, base += stride) {
      const int64_t i = base + threadIdx.x;
      if (i >= a.index.total) continue;
      const PixelIndex::Position at = a.index.at(i);
      F x[K][S::pixels];
      int32_t label[S::pixels];
      load_classes<S>(x, static_cast<const T*>(a.logits) + offset_of(a.logits_stride, at.n, at.d, at.h, at.w),
                      a.logits_stride.c, a.classes);
      read_labels(label, a, at);
      const bool masked = is_masked(a, at);
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) {
        F logit = 0, d[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const F value = x[k][p];  // read in any case: x[label][p] would put x into local memory
          logit = label[p] == k ? value : logit;
        }
        const Softmax<F> r = exponentials(x, d, p, a.classes);
        add_cross_entropy(entropy, a, r, logit, label[p], masked);
        const F scale = r.scale();
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const F probability = label[p] < 0 ? 0 : x[k][p] * scale;
          square[k] += probability * probability;
          product[k] += label[p] == k ? probability : 0;
          count[k] += label[p] == k ? 1 : 0;
        }
      }
    }
    F sums[values] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = entropy[j];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      sums[4 + k] = product[k];
      sums[4 + K + k] = square[k];
      sums[4 + 2 * K + k] = count[k];
    }
    total += static_cast<double>(sum_lanes_spread(sums));
  }
  if (lane % lanes_a_value == 0) warp_sum[warp][lane / lanes_a_value] = total;
  __syncthreads();
  if (threadIdx.x < values) {
    double sum = warp_sum[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < loss_warps; ++w) sum += warp_sum[w][threadIdx.x];
    const int value = static_cast<int>(threadIdx.x), kind = (value - 4) / K, k = (value - 4) % K;
    const bool of_class = value >= 4;
    if (!of_class || (kind < 3 && k < a.classes)) {
      const int64_t row = of_class ? 4 + kind * a.classes + k : value;
      args.partials[row * gridDim.x + blockIdx.x] = sum;
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(loss_threads, 3) loss_stream_kernel(LossForwardArguments args) {
  using T = typename S::T;
  using F = typename S::F;
  constexpr int lanes_a_class = 32 / S::chunk;
  __shared__ double warp_sum[loss_warps][4];
  const LossArguments& a = args.loss;
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  double* const block_rows = args.warp_sums + static_cast<int64_t>(blockIdx.x) * loss_warps * 3 * a.classes;
  double* const row = block_rows + warp * 3 * a.classes;
  for (int64_t k = lane; k < 3 * a.classes; k += 32) row[k] = 0;
  __syncwarp();
  double total = 0;  // of the cross entropy's sum lane / 8
  const int64_t stride = static_cast<int64_t>(gridDim.x) * loss_threads;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * loss_threads; base < a.index.total; base += stride) {
    const int64_t i = base + threadIdx.x;
    const bool inside = i < a.index.total;
    const PixelIndex::Position at = a.index.at(inside ? i : 0);
    const T* logits = static_cast<const T*>(a.logits) + offset_of(a.logits_stride, at.n, at.d, at.h, at.w);
    int32_t label[S::pixels];
    F x[S::chunk][S::pixels], scale[S::pixels], entropy[4] = {};
    Softmax<F> softmax[S::pixels];
    read_labels(label, a, at);
    read_softmax<S>(softmax, x, logits, a.logits_stride.c, a.classes);
    const bool masked = is_masked(a, at);
#pragma unroll
    for (int p = 0; p < S::pixels; ++p) {
      if (!inside) label[p] = -1;
      scale[p] = softmax[p].scale();
      if (label[p] >= 0) {
        const F logit = widen(logits[label[p] * a.logits_stride.c + p * a.logits_stride.w]);
        add_cross_entropy(entropy, a, softmax[p], logit, label[p], masked);
      }
    }
    total += static_cast<double>(sum_lanes_spread(entropy));

    for (int64_t first = 0; first < a.classes; first += S::chunk) {
      load_classes<S>(x, logits + first * a.logits_stride.c, a.logits_stride.c, a.classes - first);
      F product[S::chunk] = {}, square[S::chunk] = {}, count[S::chunk] = {};
      bool hit = false;
#pragma unroll
      for (int k = 0; k < S::chunk; ++k) {
#pragma unroll
        for (int p = 0; p < S::pixels; ++p) {
          const F probability = exponential(x[k][p] - softmax[p].max) * scale[p];
          const bool own = label[p] == first + k;
          square[k] += label[p] < 0 ? 0 : probability * probability;
          product[k] += own ? probability : 0;
          count[k] += own ? 1 : 0;
          hit |= own;
        }
      }
      double* const sums = row + first + lane / lanes_a_class;
      const bool writes = lane % lanes_a_class == 0 && first + lane / lanes_a_class < a.classes;
      const double squares = static_cast<double>(sum_lanes_spread(square));
      if (writes) sums[a.classes] += squares;
      if (__any_sync(full_warp, hit)) {
        const double products = static_cast<double>(sum_lanes_spread(product));
        const double counts = static_cast<double>(sum_lanes_spread(count));
        if (writes) {
          sums[0] += products;
          sums[2 * a.classes] += counts;
        }
      }
    }
  }
  if (lane % 8 == 0) warp_sum[warp][lane / 8] = total;
  __syncthreads();
  for (int64_t value = threadIdx.x; value < loss_sums(a.classes); value += loss_threads) {
    double sum = 0;
    for (int w = 0; w < loss_warps; ++w) {
      sum += value < 4 ? warp_sum[w][value] : block_rows[w * 3 * a.classes + value - 4];
    }
    args.partials[value * gridDim.x + blockIdx.x] = sum;
  }
}

constexpr int finish_threads = 512;

struct LossFinishArguments {
  const double* partials;  // [4 + 3 K, blocks]
  double* sums;            // [4 + 3 K]
  void* total;
  void* ce_masked;
  void* ce_visible;
  void* dice;
  int64_t classes, blocks;
  double mask_weight, ce_weight, dice_weight, smooth, denominator_offset;
};

template <typename F>
__global__ void __launch_bounds__(finish_threads) loss_finish_kernel(LossFinishArguments a) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (int64_t value = threadIdx.x / 32; value < loss_sums(a.classes); value += finish_threads / 32) {
    double sum = 0;
    for (int64_t block = lane; block < a.blocks; block += 32) sum += a.partials[value * a.blocks + block];
    sum = sum_lanes(sum);
    if (lane == 0) a.sums[value] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  double dice = 0;
  for (int64_t k = lane; k < a.classes; k += 32) {
    const double product = a.sums[4 + k], square = a.sums[4 + a.classes + k], count = a.sums[4 + 2 * a.classes + k];
    dice += 1 - (2 * product + a.smooth) / (square + count + a.smooth);
  }
  dice = sum_lanes(dice) / static_cast<double>(a.classes);
  if (lane != 0) return;
  const auto mean = [&](double loss, double weight) {
    return weight == 0 ? 0 : loss / (weight + a.denominator_offset);
  };
  const double masked = mean(a.sums[0], a.sums[1]), visible = mean(a.sums[2], a.sums[3]);
  const double total = a.ce_weight * (a.mask_weight * masked + visible) + a.dice_weight * dice;
  *static_cast<F*>(a.total) = static_cast<F>(total);
  *static_cast<F*>(a.ce_masked) = static_cast<F>(masked);
  *static_cast<F*>(a.ce_visible) = static_cast<F>(visible);
  *static_cast<F*>(a.dice) = static_cast<F>(dice);
}

// Blocks of the first launch.
template <typename S>
cudaError_t loss_blocks(const LossParams& p, int64_t* blocks) {
  return looping_grid(PixelIndex(p.batch, p.grid.size, S::pixels).total, loss_threads,
                      resident_blocks<S>(p.classes, loss_threads, loss_blocks_a_multiprocessor), blocks);
}

template <typename T>
Layout loss_layout(const LossParams& p) {
  const Layout layout = layout_of<T>(p.logits, p.logits_stride, p.batch, p.classes, p.grid);
  return layout_of_rereading<T>(layout, p.classes, loss_threads);
}

template <typename T>
size_t loss_forward_bytes(const LossParams& p) {
  int64_t values = 0;
  with_shape<T>(loss_layout<T>(p), p.classes, [&](auto shape) {
    using S = decltype(shape);
    int64_t blocks;
    const cudaError_t error = loss_blocks<S>(p, &blocks);
    values = blocks * (loss_sums(p.classes) + (S::classes == 0 ? loss_warps * 3 * p.classes : 0));
    return error;
  });
  return static_cast<size_t>(values) * sizeof(double);
}

template <typename T>
cudaError_t launch_loss_forward(const LossForwardParams& p, double* workspace, cudaStream_t stream) {
  int64_t blocks = 0;
  const cudaError_t error = with_shape<T>(loss_layout<T>(p.loss), p.loss.classes, [&](auto shape) {
    using S = decltype(shape);
    const cudaError_t failed = loss_blocks<S>(p.loss, &blocks);
    if (failed != cudaSuccess || blocks == 0) return failed;
    const LossForwardArguments a{loss_arguments<S>(p.loss), workspace, workspace + blocks * loss_sums(p.loss.classes)};
    const dim3 grid(static_cast<unsigned>(blocks)), block(loss_threads);
    if constexpr (S::classes > 0) {
      return launch(loss_registers_kernel<S>, grid, block, 0, stream, a);
    } else {
      return launch(loss_stream_kernel<S>, grid, block, 0, stream, a);
    }
  });
  if (error != cudaSuccess) return error;
  const LossFinishArguments a{workspace,
                              p.sums,
                              p.total,
                              p.ce_masked,
                              p.ce_visible,
                              p.dice,
                              p.loss.classes,
                              blocks,
                              p.loss.mask_weight,
                              p.loss.ce_weight,
                              p.loss.dice_weight,
                              p.loss.smooth,
                              p.loss.denominator_offset};
  return launch(loss_finish_kernel<Compute<T>>, dim3(1), dim3(finish_threads), 0, stream, a);
}

}  // namespace entmask::cuda
