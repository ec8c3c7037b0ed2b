// Where a thread's pixels lie, for indices and offsets that no buffer of a test could reach.
#include "kernels/cuda/index.cuh"

#include "driver.h"

namespace {

using namespace entmask;

struct IndexParams {
  const int64_t* index;  // [count]
  int64_t* out;          // [count, 6]: n, d, h, w, offset, patch
  Grid grid;
  Strides strides;
  int64_t batch, count, step;
};

__global__ void locate(const int64_t* index, int64_t* out, int64_t count, cuda::PixelIndex pixels,
                       cuda::PatchLookup lookup, Strides strides) {
  cuda::wait_for_predecessor();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const cuda::PixelIndex::Position at = pixels.at(index[i]);
  const int64_t values[6] = {
      at.n, at.d, at.h, at.w, cuda::offset_of(strides, at.n, at.d, at.h, at.w), lookup(at.n, at.d, at.h, at.w)};
  for (int k = 0; k < 6; ++k) out[i * 6 + k] = values[k];
}

size_t none(const void*) { return 0; }

cudaError_t launch_locate(const void* params, void*, cudaStream_t stream) {
  const auto& p = *static_cast<const IndexParams*>(params);
  const dim3 blocks(static_cast<unsigned>(cuda::ceil_div(p.count, 64)));
  return cuda::launch(locate, blocks, dim3(64), 0, stream, p.index, p.out, p.count,
                      cuda::PixelIndex(p.batch, p.grid.size, static_cast<int>(p.step)), cuda::PatchLookup(p.grid),
                      p.strides);
}

}  // namespace

const simt::Operation simt::operations[] = {
    {"locate", sizeof(IndexParams), none, launch_locate},
    {nullptr, 0, nullptr, nullptr},
};
