// The launchers of csrc/kernels/cuda/launch.h, for the driver.
#include "kernels/cuda/launch.h"

#include "driver.h"

namespace {

using namespace entmask;

size_t no_workspace(const void*) { return 0; }

template <typename P, size_t (*workspace)(const P&)>
size_t workspace_of(const void* params) {
  return workspace(*static_cast<const P*>(params));
}
size_t loss_workspace_of(const void* params) {
  return cuda::loss_forward_workspace(static_cast<const LossForwardParams*>(params)->loss);
}
size_t soft_loss_workspace_of(const void* params) {
  return cuda::soft_loss_forward_workspace(static_cast<const SoftLossForwardParams*>(params)->loss);
}

template <typename P, cudaError_t (*run)(const P&, void*, cudaStream_t)>
cudaError_t run_with_workspace(const void* params, void* workspace, cudaStream_t stream) {
  return run(*static_cast<const P*>(params), workspace, stream);
}
template <typename P, cudaError_t (*run)(const P&, cudaStream_t)>
cudaError_t run_alone(const void* params, void*, cudaStream_t stream) {
  return run(*static_cast<const P*>(params), stream);
}

}  // namespace

const simt::Operation simt::operations[] = {
    {"entropy_pool", sizeof(EntropyPoolParams), workspace_of<EntropyPoolParams, cuda::entropy_pool_workspace>,
     run_with_workspace<EntropyPoolParams, cuda::entropy_pool>},
    {"entropy_map", sizeof(EntropyMapParams), no_workspace, run_alone<EntropyMapParams, cuda::entropy_map>},
    {"entropy_backward", sizeof(EntropyBackwardParams), no_workspace,
     run_alone<EntropyBackwardParams, cuda::entropy_backward>},
    {"pseudo_labels", sizeof(PseudoLabelsParams), workspace_of<PseudoLabelsParams, cuda::pseudo_labels_workspace>,
     run_with_workspace<PseudoLabelsParams, cuda::pseudo_labels>},
    {"select", sizeof(SelectParams), workspace_of<SelectParams, cuda::select_workspace>,
     run_with_workspace<SelectParams, cuda::select>},
    {"where", sizeof(WhereParams), no_workspace, run_alone<WhereParams, cuda::where>},
    {"loss_forward", sizeof(LossForwardParams), loss_workspace_of,
     run_with_workspace<LossForwardParams, cuda::loss_forward>},
    {"loss_backward", sizeof(LossBackwardParams), no_workspace, run_alone<LossBackwardParams, cuda::loss_backward>},
    {"soft_loss_forward", sizeof(SoftLossForwardParams), soft_loss_workspace_of,
     run_with_workspace<SoftLossForwardParams, cuda::soft_loss_forward>},
    {"soft_loss_backward", sizeof(SoftLossBackwardParams), no_workspace,
     run_alone<SoftLossBackwardParams, cuda::soft_loss_backward>},
    {"box_mask", sizeof(BoxMaskParams), no_workspace, run_alone<BoxMaskParams, cuda::box_mask>},
    {"gather", sizeof(GatherParams), no_workspace, run_alone<GatherParams, cuda::gather>},
    {"gather_backward", sizeof(GatherBackwardParams), no_workspace,
     run_alone<GatherBackwardParams, cuda::gather_backward>},
    {"components", sizeof(ComponentsParams), workspace_of<ComponentsParams, cuda::components_workspace>,
     run_with_workspace<ComponentsParams, cuda::components>},
    {nullptr, 0, nullptr, nullptr},
};
