// The pseudo-labels alone, and each image's share of them that is kept: the kernels and their launcher.
//
// A thread takes one vector of pixels at a time. A block works on one image and leaves in the workspace how many labels
// it has kept; a second small launch adds these up, so that nothing has to be zeroed before.
#pragma once

#include "labels.cuh"
#include "launch.h"

namespace entmask::cuda {

constexpr int label_threads = 128;

// Blocks an image: by the sizes alone, so that the workspace, which is asked for first, fits any layout.
inline int64_t label_blocks(const int64_t (&size)[3], int64_t pixels_a_thread) {
  constexpr int64_t most = 1024;
  const int64_t blocks = ceil_div(pixels_of(size), label_threads * pixels_a_thread);
  return blocks < most ? blocks : most;
}

struct PseudoLabelArguments {
  const void* logits;  // [N, K, D, H, W]
  int32_t* kept;       // [N, blocks]
  LabelOutput out;
  Strides stride;
  int64_t classes;
  PixelIndex index;
  int64_t of_an_image;  // vectors
  Divider blocks;       // an image
};

template <typename S>
__global__ void __launch_bounds__(label_threads, 4) pseudo_labels_kernel(PseudoLabelArguments a) {
  wait_for_predecessor();
  using T = typename S::T;
  using F = typename S::F;
  __shared__ int32_t warp_kept[label_threads / 32];
  int32_t block;
  const int64_t first = a.blocks.split(int64_t{blockIdx.x}, &block) * a.of_an_image;
  const int64_t step = static_cast<int64_t>(a.blocks.divisor) * label_threads;
  int32_t kept = 0;
  for (int64_t i = static_cast<int64_t>(block) * label_threads + threadIdx.x; i < a.of_an_image; i += step) {
    const PixelIndex::Position at = a.index.at(first + i);
    F x[S::chunk][S::pixels];
    Softmax<F> softmax[S::pixels];
    read_softmax<S>(softmax, x, static_cast<const T*>(a.logits) + offset_of(a.stride, at.n, at.d, at.h, at.w),
                    a.stride.c, a.classes);
    int32_t label[S::pixels];
    gated_labels(label, a.out, softmax);
#pragma unroll
    for (int p = 0; p < S::pixels; ++p) kept += label[p] != a.out.ignored;
    store_labels(a.out, (first + i) * S::pixels, label, (threadIdx.x & 1) != 0);
  }
  kept = sum_lanes(kept);
  if ((threadIdx.x & 31) == 0) warp_kept[threadIdx.x / 32] = kept;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < label_threads / 32; ++w) kept += warp_kept[w];
    a.kept[blockIdx.x] = kept;
  }
}

// A warp adds up an image's blocks.
__global__ void __launch_bounds__(label_threads)
    pseudo_labels_finish_kernel(const int32_t* kept, float* accepted, int64_t images, int32_t blocks, double pixels) {
  wait_for_predecessor();
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (label_threads / 32) + threadIdx.x / 32;
  if (n >= images) return;  // a whole warp
  double sum = 0;
  for (int32_t i = threadIdx.x & 31; i < blocks; i += 32) sum += kept[n * blocks + i];
  sum = sum_lanes(sum);
  if ((threadIdx.x & 31) == 0) accepted[n] = static_cast<float>(sum / pixels);
}

template <typename T>
cudaError_t launch_pseudo_labels(const PseudoLabelsParams& p, int32_t* kept, cudaStream_t stream) {
  Layout layout = layout_of<T>(p.logits, p.logits_stride, p.batch, p.classes, whole_image(p.size));
  if (layout == Layout::planes && reinterpret_cast<uintptr_t>(p.labels) % 16 != 0) layout = Layout::any;
  return with_shape<T>(layout, p.classes, [&](auto shape) {
    using S = decltype(shape);
    const int64_t blocks = label_blocks(p.size, S::pixels), of_an_image = pixels_of(p.size) / S::pixels;
    PseudoLabelArguments a{
        p.logits,        kept,           LabelOutput(p.labels, p.label_dtype, p.gated, p.min_confidence),
        p.logits_stride, p.classes,      PixelIndex(p.batch, p.size, S::pixels),
        of_an_image,     Divider(blocks)};
    a.out.pairs = p.label_dtype == LabelDtype::int64 && of_an_image % 32 == 0;
    const cudaError_t error = launch(pseudo_labels_kernel<S>, dim3(static_cast<unsigned>(p.batch * blocks)),
                                     dim3(label_threads), 0, stream, a);
    if (error != cudaSuccess) return error;
    return launch(pseudo_labels_finish_kernel, dim3(static_cast<unsigned>(ceil_div(p.batch, label_threads / 32))),
                  dim3(label_threads), 0, stream, static_cast<const int32_t*>(kept), p.accepted, p.batch,
                  static_cast<int32_t>(blocks), static_cast<double>(pixels_of(p.size)));
  });
}

}  // namespace entmask::cuda
