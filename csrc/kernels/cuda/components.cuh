// The largest component of each class: union-find over pixels, in five launches.
//
//   start   each pixel points to the first of its run within the warp
//   unite   runs are united with the runs of their class that they touch
//   count   each pixel points to its root; runs add their pixels there
//   choose  roots compete for their class
//   write   the pixels of the others become 0
//
// The parent of a pixel is never behind it, and of two roots the one behind gets the other as its parent: the root of a
// component is its first pixel in every order of events. Sums and maxima of integers do not depend on that order
// either, so the answer is the CPU's, bit for bit.
#pragma once

#include "index.cuh"
#include "launch.h"
#include "math.cuh"

namespace entmask::cuda {

constexpr int component_threads = 256;

template <typename L>
struct ComponentsArguments {
  const L* labels;           // [N, D, H, W]
  L* out;                    // [N, D, H, W]
  int32_t* parent;           // [N, D, H, W] a pixel of the same component, by its place in the image
  unsigned* pixels;          // [N, D, H, W] of the component, at its root
  unsigned long long* best;  // [N, classes] pixels of the largest, and its root: first come, first in order
  PixelIndex index;
  int64_t image_pixels, classes, connectivity, slots;
};

// A thread's pixel. Threads beyond the last have label 0 and are no part of a run.
template <typename L>
struct Pixel {
  PixelIndex::Position at;
  int64_t index, base;  // base: the image's first pixel
  int64_t label;
  int32_t place;  // in the image
  bool inside, foreground;
  unsigned starts;  // lanes whose pixel is the first of a run in this warp

  __device__ __forceinline__ explicit Pixel(const ComponentsArguments<L>& a) {
    index = static_cast<int64_t>(blockIdx.x) * component_threads + threadIdx.x;
    inside = index < a.index.total;
    at = a.index.at(inside ? index : 0);
    base = at.n * a.image_pixels;
    place = static_cast<int32_t>(inside ? index - base : 0);
    label = inside ? static_cast<int64_t>(a.labels[index]) : 0;
    foreground = label > 0 && label < a.classes;
    const bool continues = inside && at.w > 0 && static_cast<int64_t>(a.labels[index - 1]) == label;
    starts = __ballot_sync(full_warp, !continues) | 1u;
  }
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x & 31); }
  // The lane of its run's first pixel in this warp, and how many of the run's pixels come from its own on.
  __device__ __forceinline__ int first_lane() const { return 31 - __clz(static_cast<int>(starts & upto())); }
  __device__ __forceinline__ int run_length() const {
    const unsigned later = starts & ~upto();
    return (later != 0 ? __ffs(static_cast<int>(later)) - 1 : 32) - lane();
  }

 private:
  __device__ __forceinline__ unsigned upto() const { return lane() == 31 ? ~0u : (2u << lane()) - 1; }
};

template <typename L>
__global__ void __launch_bounds__(component_threads) components_start_kernel(ComponentsArguments<L> a) {
  wait_for_predecessor();
  const Pixel<L> pixel(a);
  if (pixel.inside) {
    a.parent[pixel.index] = pixel.place - (pixel.lane() - pixel.first_lane());
    a.pixels[pixel.index] = 0;
  }
  const int64_t threads = static_cast<int64_t>(gridDim.x) * component_threads;
  for (int64_t i = pixel.index; i < a.slots; i += threads) a.best[i] = 0;
}

__device__ __forceinline__ int32_t find_root(const int32_t* parent, int32_t place) {
  for (int32_t next = relaxed_load(parent + place); next != place; next = relaxed_load(parent + place)) place = next;
  return place;
}

// The same, and halves the way. What it overwrites is the parent of a pixel that is a root no more: a thread that has
// just lowered it goes on with the parent that was there before, so that nothing is lost.
__device__ __forceinline__ int32_t find_root_halving(int32_t* parent, int32_t place) {
  for (;;) {
    const int32_t next = relaxed_load(parent + place);
    if (next == place) return place;
    const int32_t beyond = relaxed_load(parent + next);
    if (beyond != next) relaxed_store(parent + place, beyond);
    place = next;
  }
}

__device__ __forceinline__ void unite(int32_t* parent, int32_t a, int32_t b) {
  for (;;) {
    a = find_root_halving(parent, a);
    b = find_root_halving(parent, b);
    if (a == b) return;
    if (a < b) {
      const int32_t behind = b;
      b = a;
      a = behind;
    }
    const int32_t before = atomicMin(parent + a, b);
    if (before == a) return;
    a = before;  // another thread was there first: what it put there belongs to the component too
  }
}

template <typename L>
__global__ void __launch_bounds__(component_threads) components_unite_kernel(ComponentsArguments<L> a) {
  wait_for_predecessor();
  const Pixel<L> pixel(a);
  if (!pixel.foreground) return;
  const L* const labels = a.labels + pixel.base;
  int32_t* const parent = a.parent + pixel.base;
  const int32_t place = pixel.place, width = a.index.columns.divisor, height = a.index.height.divisor;
  const auto same = [&](int32_t other) { return static_cast<int64_t>(labels[other]) == pixel.label; };
  const bool left = pixel.at.w > 0 && same(place - 1), right_inside = pixel.at.w + 1 < width;
  if (left && pixel.lane() == 0) unite(parent, place, place - 1);
  for (int32_t back = 0; back <= 1; ++back) {
    for (int32_t down = -1; down <= (back == 0 ? -1 : 1); ++down) {
      const int32_t steps = back + (down != 0);
      const int32_t h = pixel.at.h + down;
      if (steps > a.connectivity || pixel.at.d < back || h < 0 || h >= height) continue;
      const int32_t other = place + (down - back * height) * width;
      if (same(other)) {
        // Where the pixels on the left of both are of the class as well, they are united, and these through them.
        if (!left || !same(other - 1)) unite(parent, place, other);
      } else if (steps < a.connectivity) {  // else the diagonal ones are united with `other` in its row
        if (pixel.at.w > 0 && !left && same(other - 1)) unite(parent, place, other - 1);
        if (right_inside && same(other + 1)) unite(parent, place, other + 1);
      }
    }
  }
}

template <typename L>
__global__ void __launch_bounds__(component_threads) components_count_kernel(ComponentsArguments<L> a) {
  wait_for_predecessor();
  const Pixel<L> pixel(a);
  if (!pixel.foreground) return;
  const int32_t root = find_root(a.parent + pixel.base, pixel.place);
  relaxed_store(a.parent + pixel.index, root);
  if (pixel.first_lane() == pixel.lane()) {
    atomicAdd(a.pixels + pixel.base + root, static_cast<unsigned>(pixel.run_length()));
  }
}

__device__ __forceinline__ unsigned long long claim(unsigned pixels, int32_t root) {
  return static_cast<unsigned long long>(pixels) << 32 | (~0u - static_cast<unsigned>(root));
}

template <typename L>
__global__ void __launch_bounds__(component_threads) components_choose_kernel(ComponentsArguments<L> a) {
  wait_for_predecessor();
  const Pixel<L> pixel(a);
  if (!pixel.foreground || a.parent[pixel.index] != pixel.place) return;
  atomicMax(a.best + pixel.at.n * a.classes + pixel.label, claim(a.pixels[pixel.index], pixel.place));
}

template <typename L>
__global__ void __launch_bounds__(component_threads) components_write_kernel(ComponentsArguments<L> a) {
  wait_for_predecessor();
  const Pixel<L> pixel(a);
  if (!pixel.inside) return;
  bool stays = true;
  if (pixel.foreground) {
    const unsigned long long best = a.best[pixel.at.n * a.classes + pixel.label];
    stays = static_cast<unsigned>(best) == ~0u - static_cast<unsigned>(a.parent[pixel.index]);
  }
  a.out[pixel.index] = stays ? static_cast<L>(pixel.label) : L{0};
}

template <typename L>
cudaError_t launch_components(const ComponentsParams& p, void* workspace, cudaStream_t stream) {
  const int64_t image_pixels = pixels_of(p.size), total = p.batch * image_pixels, slots = p.batch * p.classes;
  ComponentsArguments<L> a{static_cast<const L*>(p.labels),
                           static_cast<L*>(p.out),
                           nullptr,
                           nullptr,
                           static_cast<unsigned long long*>(workspace),
                           PixelIndex(p.batch, p.size, 1),
                           image_pixels,
                           p.classes,
                           p.connectivity,
                           slots};
  a.parent = reinterpret_cast<int32_t*>(a.best + slots);
  a.pixels = reinterpret_cast<unsigned*>(a.parent + total);
  const dim3 blocks(static_cast<unsigned>(ceil_div(total, component_threads)));
  for (const auto kernel : {components_start_kernel<L>, components_unite_kernel<L>, components_count_kernel<L>,
                            components_choose_kernel<L>, components_write_kernel<L>}) {
    const cudaError_t error = launch(kernel, blocks, dim3(component_threads), 0, stream, a);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace entmask::cuda
