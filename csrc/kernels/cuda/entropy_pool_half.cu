// The 16-bit kernels of entropy_pool, apart so that they compile side by side with the others.
#include "entropy_pool.cuh"

namespace entmask::cuda {

template cudaError_t launch_entropy_pool<__half>(const EntropyPoolParams&, const PoolSplit&, double*, cudaStream_t);
template cudaError_t launch_entropy_pool<__nv_bfloat16>(const EntropyPoolParams&, const PoolSplit&, double*,
                                                        cudaStream_t);

}  // namespace entmask::cuda
