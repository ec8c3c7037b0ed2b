// pseudo_labels: two launches.
#include "pseudo_labels.cuh"

namespace entmask::cuda {

size_t pseudo_labels_workspace(const PseudoLabelsParams& p) {
  return static_cast<size_t>(p.batch * label_blocks(p.size, 1)) * sizeof(int32_t);
}

cudaError_t pseudo_labels(const PseudoLabelsParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * pixels_of(p.size) == 0) return cudaSuccess;
  int32_t* const kept = static_cast<int32_t*>(workspace);
  return with_dtype(p.dtype, [&](auto zero) { return launch_pseudo_labels<decltype(zero)>(p, kept, stream); });
}

}  // namespace entmask::cuda
