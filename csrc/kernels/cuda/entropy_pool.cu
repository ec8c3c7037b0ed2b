// entropy_pool: one launch, and a second small one where patches are split. Scores of single pixels are a map: where
// nothing else is asked for, the kernel of the map writes them, which spares what a patch costs beside its pixels.
#include "entropy_pool.cuh"

namespace entmask::cuda {
namespace {

bool is_map(const EntropyPoolParams& p) {
  return patches_of(p.grid) == pixels_of(p.grid.size) && !p.count && p.label_dtype == LabelDtype::none;
}

EntropyMapParams map_of(const EntropyPoolParams& p) {
  EntropyMapParams map{};
  map.logits = p.logits;
  map.entropy = p.scores;
  map.logits_stride = p.logits_stride;
  map.dtype = p.dtype;
  map.batch = p.batch;
  map.classes = p.classes;
  for (int axis = 0; axis < 3; ++axis) map.size[axis] = p.grid.size[axis];
  map.uncertainty = p.uncertainty;
  map.normalize = true;
  return map;
}

}  // namespace

size_t entropy_pool_workspace(const EntropyPoolParams& p) {
  const PoolSplit split(p);
  return split.parts > 1 ? static_cast<size_t>(p.batch * patches_of(p.grid) * split.parts) * sizeof(double) : 0;
}

cudaError_t entropy_pool(const EntropyPoolParams& p, void* workspace, cudaStream_t stream) {
  const int64_t patches = p.batch * patches_of(p.grid);
  if (patches == 0) return cudaSuccess;
  if (is_map(p)) return entropy_map(map_of(p), stream);
  const PoolSplit split(p);
  double* const partials = static_cast<double*>(workspace);
  const cudaError_t error =
      with_dtype(p.dtype, [&](auto zero) { return launch_entropy_pool<decltype(zero)>(p, split, partials, stream); });
  if (error != cudaSuccess || split.parts == 1) return error;
  const PoolFinish finish = pool_finish_of(p, partials, split.parts);
  const dim3 blocks(static_cast<unsigned>(ceil_div(patches, pool_threads / 32)));
  return launch(p.dtype == Dtype::float64 ? entropy_pool_finish_kernel<double> : entropy_pool_finish_kernel<float>,
                blocks, dim3(pool_threads), 0, stream, finish, patches);
}

}  // namespace entmask::cuda
