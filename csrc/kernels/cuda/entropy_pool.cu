// entropy_pool: one launch, and a second small one where patches are split.
#include "entropy_pool.cuh"

namespace entmask::cuda {

size_t entropy_pool_workspace(const EntropyPoolParams& p) {
  const PoolSplit split(p);
  return split.parts > 1 ? static_cast<size_t>(p.batch * patches_of(p.grid) * split.parts) * sizeof(double) : 0;
}

cudaError_t entropy_pool(const EntropyPoolParams& p, void* workspace, cudaStream_t stream) {
  const int64_t patches = p.batch * patches_of(p.grid);
  if (patches == 0) return cudaSuccess;
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
