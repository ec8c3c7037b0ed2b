// The sums of the consistency loss: one pass over the logits, then one small block that adds up and writes the outputs.
//
// A grid of a few blocks a multiprocessor walks over the pixels. A thread adds a few pixels in single precision, its
// warp adds these, and one lane a sum carries on in double; then warps, then blocks are added, all in a fixed order. No
// atomics. Up to 8 classes everything is in registers. Beyond, softmax takes a pass over the classes and the sums
// another (from the cache), and a warp's sums a class lie in its own row of the workspace.
//
// REGIONS 2: each region has Dice sums of its own. The pixels that a thread reads at once are of one patch, so of one
// region: a warp adds up the masked lanes' values, then the visible lanes', and most warps have lanes of one kind only.
#pragma once

#include "loss.cuh"
#include "sums.cuh"

namespace entmask::cuda {

constexpr int loss_threads = 128, loss_warps = loss_threads / 32;
constexpr int loss_blocks_a_multiprocessor = 6;
// That the registers must leave room for.
template <typename S>
constexpr int loss_blocks_at_once = S::classes == 0 || S::classes > 4 ? 3
                                    : S::pixels > 4                   ? 5
                                                                      : 6;

struct LossForwardArguments {
  LossArguments loss;
  double* partials;   // [4 + regions * 3 K, blocks]
  double* warp_sums;  // [blocks * loss_warps, regions, 3, K]; more than 8 classes only
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

template <typename S, int REGIONS>
__global__ void __launch_bounds__(loss_threads, loss_blocks_at_once<S>)
    loss_registers_kernel(LossForwardArguments args) {
  wait_for_predecessor();
  using T = typename S::T;
  using F = typename S::F;
  constexpr int K = S::classes, values = K <= 4 ? 16 : 32, lanes_a_value = 32 / values;
  constexpr int steps_a_flush = REGIONS > 1 || S::pixels > 4 ? 1 : S::pixels > 1 ? 2 : 8;  // about 8 pixels
  static_assert(4 + 3 * K <= values, "a lane's sums are spread over the warp");
  __shared__ double warp_sum[loss_warps][REGIONS * values];
  const LossArguments& a = args.loss;
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  double total[REGIONS] = {};  // of value lane / lanes_a_value
  const int64_t stride = static_cast<int64_t>(gridDim.x) * loss_threads;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * loss_threads; base < a.index.total;) {
    F entropy[4] = {}, product[K] = {}, square[K] = {}, count[K] = {};
    bool masked = false;
    for (int step = 0; step < steps_a_flush && base < a.index.total; ++step, base += stride) {
      const int64_t i = base + threadIdx.x;
      if (i >= a.index.total) continue;
      const PixelIndex::Position at = a.index.at(i);
      F x[K][S::pixels];
      int32_t label[S::pixels];
      RawLabels<S::pixels> labels;
      const uint8_t byte = load_masked(a, at);
      load_labels(labels, a, at);
      load_classes<S>(x, static_cast<const T*>(a.logits) + offset_of(a.logits_stride, at.n, at.d, at.h, at.w),
                      a.logits_stride.c, a.classes);
      narrow_labels(label, labels, a, at);
      masked = byte != 0;
#pragma unroll
      for (int p = 0; p < S::pixels; ++p) {
        F logit = 0, d[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const F value = x[k][p];  // read in any case: x[label][p] would put x into local memory
          logit = label[p] == k ? value : logit;
        }
        const Softmax<F> r = exponentials<S>(x, d, p, a.classes);
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
#pragma unroll
    for (int region = 0; region < REGIONS; ++region) {
      const bool own = REGIONS == 1 || masked == (region == 0);
      if (REGIONS > 1 && !__any_sync(full_warp, own)) continue;
      F sums[values] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] = own ? entropy[j] : 0;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        sums[4 + k] = own ? product[k] : 0;
        sums[4 + K + k] = own ? square[k] : 0;
        sums[4 + 2 * K + k] = own ? count[k] : 0;
      }
      total[region] += static_cast<double>(sum_lanes_spread(sums));
    }
  }
#pragma unroll
  for (int region = 0; region < REGIONS; ++region) {
    if (lane % lanes_a_value == 0) warp_sum[warp][region * values + lane / lanes_a_value] = total[region];
  }
  __syncthreads();
  if (threadIdx.x < REGIONS * values) {
    const int region = static_cast<int>(threadIdx.x) / values, value = static_cast<int>(threadIdx.x) % values;
    const int kind = (value - 4) / K, k = (value - 4) % K;
    const bool of_class = value >= 4;
    double sum = warp_sum[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < loss_warps; ++w) sum += warp_sum[w][threadIdx.x];
    if (REGIONS > 1 && !of_class) {  // what a lane adds to the cross entropy is in the sums of its region
      for (int w = 0; w < loss_warps; ++w) sum += warp_sum[w][(1 - region) * values + value];
    }
    if (of_class ? kind < 3 && k < a.classes : region == 0) {
      const int64_t row = of_class ? 4 + (region * 3 + kind) * a.classes + k : value;
      args.partials[row * gridDim.x + blockIdx.x] = sum;
    }
  }
}

// The warp's sums of N values of the lanes that are `own`, as sum_lanes_spread leaves them.
template <int N, typename F>
__device__ __forceinline__ double sum_own(const F (&v)[N], bool own) {
  F kept[N];
#pragma unroll
  for (int i = 0; i < N; ++i) kept[i] = own ? v[i] : 0;
  return static_cast<double>(sum_lanes_spread(kept));
}

template <typename S, int REGIONS>
__global__ void __launch_bounds__(loss_threads, loss_blocks_at_once<S>) loss_stream_kernel(LossForwardArguments args) {
  wait_for_predecessor();
  using T = typename S::T;
  using F = typename S::F;
  constexpr int lanes_a_class = 32 / S::chunk;
  __shared__ double warp_sum[loss_warps][4];
  const LossArguments& a = args.loss;
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t row_sums = REGIONS * 3 * a.classes;
  double* const block_rows = args.warp_sums + static_cast<int64_t>(blockIdx.x) * loss_warps * row_sums;
  double* const row = block_rows + warp * row_sums;
  for (int64_t k = lane; k < row_sums; k += 32) row[k] = 0;
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
    RawLabels<S::pixels> labels;
    load_labels(labels, a, at);
    narrow_labels(label, labels, a, at);
    read_softmax<S>(softmax, x, logits, a.logits_stride.c, a.classes);
    const bool masked = load_masked(a, at) != 0;
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
          const bool own = label[p] == static_cast<int32_t>(first) + k;
          square[k] += label[p] < 0 ? 0 : probability * probability;
          product[k] += own ? probability : 0;
          count[k] += own ? 1 : 0;
          hit |= own;
        }
      }
      const bool writes = lane % lanes_a_class == 0 && first + lane / lanes_a_class < a.classes;
#pragma unroll
      for (int region = 0; region < REGIONS; ++region) {
        const bool own = REGIONS == 1 || masked == (region == 0);
        if (REGIONS > 1 && !__any_sync(full_warp, own)) continue;
        double* const sums = row + region * 3 * a.classes + first + lane / lanes_a_class;
        const double squares = sum_own(square, own);
        if (writes) sums[a.classes] += squares;
        if (__any_sync(full_warp, hit && own)) {
          const double products = sum_own(product, own), counts = sum_own(count, own);
          if (writes) {
            sums[0] += products;
            sums[2 * a.classes] += counts;
          }
        }
      }
    }
  }
  if (lane % 8 == 0) warp_sum[warp][lane / 8] = total;
  __syncthreads();
  for (int64_t value = threadIdx.x; value < loss_sums(a.classes, REGIONS); value += loss_threads) {
    double sum = 0;
    for (int w = 0; w < loss_warps; ++w) {
      sum += value < 4 ? warp_sum[w][value] : block_rows[w * row_sums + value - 4];
    }
    args.partials[value * gridDim.x + blockIdx.x] = sum;
  }
}

constexpr int finish_threads = 512;
constexpr int64_t finish_held = 256;  // sums that shared memory holds: read back from there, not from global memory

struct LossFinishArguments {
  const double* partials;  // [4 + regions * 3 K, blocks]
  double* sums;            // [4 + regions * 3 K]
  void* total;
  void* ce_masked;
  void* ce_visible;
  void* dice;
  int64_t classes, blocks;
  int regions;
  double mask_weight, visible_weight, ce_weight, dice_weight, smooth, denominator_offset;
};

// Of the class sums I, Q, T that begin at s, by a whole warp; 0 where a region has no pixels.
__device__ __forceinline__ double soft_dice(const LossFinishArguments& a, const double* s) {
  double dice = 0, pixels = 0;
  for (int64_t k = threadIdx.x & 31; k < a.classes; k += 32) {
    const double product = s[k], square = s[a.classes + k], count = s[2 * a.classes + k];
    dice += 1 - (2 * product + a.smooth) / (square + count + a.smooth);
    pixels += count;
  }
  dice = sum_lanes(dice) / static_cast<double>(a.classes);
  return a.regions == 2 && sum_lanes(pixels) == 0 ? 0 : dice;
}

// A part of weight 0 adds 0 whatever it is: a Dice of smooth 0 may be NaN, a cross entropy infinite.
__device__ __forceinline__ double weighted(double weight, double part) { return weight == 0 ? 0 : weight * part; }

template <typename F>
__global__ void __launch_bounds__(finish_threads, 1) loss_finish_kernel(LossFinishArguments a) {
  wait_for_predecessor();
  __shared__ double held[finish_held];
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int64_t values = loss_sums(a.classes, a.regions);
  double* const sums = values <= finish_held ? held : a.sums;
  for (int64_t value = threadIdx.x / 32; value < values; value += finish_threads / 32) {
    const double sum = sum_row(a.partials + value * a.blocks, a.blocks);
    if (lane == 0) a.sums[value] = sums[value] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  double dice = soft_dice(a, sums + 4);
  if (a.regions == 2) {
    dice = weighted(a.mask_weight, dice) + weighted(a.visible_weight, soft_dice(a, sums + 4 + 3 * a.classes));
  }
  if (lane != 0) return;
  const auto mean = [&](double loss, double weight) {
    return weight == 0 ? 0 : loss / (weight + a.denominator_offset);
  };
  const double masked = mean(sums[0], sums[1]), visible = mean(sums[2], sums[3]);
  const double ce = weighted(a.mask_weight, masked) + weighted(a.visible_weight, visible);
  const double total = weighted(a.ce_weight, ce) + weighted(a.dice_weight, dice);
  *static_cast<F*>(a.total) = static_cast<F>(total);
  *static_cast<F*>(a.ce_masked) = static_cast<F>(masked);
  *static_cast<F*>(a.ce_visible) = static_cast<F>(visible);
  *static_cast<F*>(a.dice) = static_cast<F>(dice);
}

// The kernel of the first launch.
template <typename S>
auto loss_kernel(const LossParams& p) {
  if constexpr (S::classes > 0) {
    return p.dice_each ? loss_registers_kernel<S, 2> : loss_registers_kernel<S, 1>;
  } else {
    return p.dice_each ? loss_stream_kernel<S, 2> : loss_stream_kernel<S, 1>;
  }
}

// Its blocks.
template <typename S>
cudaError_t loss_blocks(const LossParams& p, int64_t* blocks) {
  return looping_grid(loss_kernel<S>(p), PixelIndex(p.batch, p.grid.size, S::pixels).total, loss_threads,
                      resident_blocks<S>(p.classes, loss_threads, loss_blocks_a_multiprocessor), blocks);
}

template <typename T>
Layout loss_layout(const LossParams& p) {
  const Layout layout = layout_of<T>(p.logits, p.logits_stride, p.batch, p.classes, p.grid);
  return layout_of_rereading<T>(layout, p.classes, loss_threads);
}

inline int regions_of(const LossParams& p) { return p.dice_each ? 2 : 1; }

template <typename T>
size_t loss_forward_bytes(const LossParams& p) {
  int64_t values = 0;
  with_shape<T>(loss_layout<T>(p), p.classes, [&](auto shape) {
    using S = decltype(shape);
    int64_t blocks;
    const cudaError_t error = loss_blocks<S>(p, &blocks);
    const int regions = regions_of(p);
    values = blocks * (loss_sums(p.classes, regions) + (S::classes == 0 ? loss_warps * regions * 3 * p.classes : 0));
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
    const LossForwardArguments a{loss_arguments<S>(p.loss), workspace,
                                 workspace + blocks * loss_sums(p.loss.classes, regions_of(p.loss))};
    const dim3 grid(static_cast<unsigned>(blocks)), block(loss_threads);
    return launch(loss_kernel<S>(p.loss), grid, block, 0, stream, a);
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
                              regions_of(p.loss),
                              p.loss.mask_weight,
                              p.loss.visible_weight,
                              p.loss.ce_weight,
                              p.loss.dice_weight,
                              p.loss.smooth,
                              p.loss.denominator_offset};
  return launch(loss_finish_kernel<Compute<T>>, dim3(1), dim3(finish_threads), 0, stream, a);
}

}  // namespace entmask::cuda
