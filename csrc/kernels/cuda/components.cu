// largest_components: five launches.
#include "components.cuh"

namespace entmask::cuda {

size_t components_workspace(const ComponentsParams& p) {
  return static_cast<size_t>(p.batch) * (static_cast<size_t>(p.classes) * sizeof(unsigned long long) +
                                         static_cast<size_t>(pixels_of(p.size)) * 2 * sizeof(int32_t));
}

cudaError_t components(const ComponentsParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * pixels_of(p.size) == 0) return cudaSuccess;
  return p.label_dtype == LabelDtype::uint8 ? launch_components<uint8_t>(p, workspace, stream)
                                            : launch_components<int64_t>(p, workspace, stream);
}

}  // namespace entmask::cuda
