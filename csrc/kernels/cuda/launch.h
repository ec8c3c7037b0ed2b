// The CUDA kernels as the ops see them: one launcher a stage. A launcher checks nothing, allocates nothing and does not
// sync; it queues its kernels on the stream and returns the launch's error code. A tensor may have more than 2^31
// elements, one axis (and one row of patches to select from, in blocks of 8192) fewer.
//
// *_workspace: bytes of scratch that the launcher needs, from the allocator of the op, 256-byte aligned, contents
// undefined; asked for with the same params, pointers included, on the same current device. It belongs to that call
// alone, so that calls on several streams run side by side.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "../params.h"

namespace entmask::cuda {

size_t entropy_pool_workspace(const EntropyPoolParams& p);
cudaError_t entropy_pool(const EntropyPoolParams& p, void* workspace, cudaStream_t stream);
cudaError_t entropy_map(const EntropyMapParams& p, cudaStream_t stream);
cudaError_t entropy_backward(const EntropyBackwardParams& p, cudaStream_t stream);

size_t pseudo_labels_workspace(const PseudoLabelsParams& p);
cudaError_t pseudo_labels(const PseudoLabelsParams& p, void* workspace, cudaStream_t stream);

size_t select_workspace(const SelectParams& p);
cudaError_t select(const SelectParams& p, void* workspace, cudaStream_t stream);

cudaError_t where(const WhereParams& p, cudaStream_t stream);
cudaError_t box_mask(const BoxMaskParams& p, cudaStream_t stream);

size_t loss_forward_workspace(const LossParams& p);
cudaError_t loss_forward(const LossForwardParams& p, void* workspace, cudaStream_t stream);
cudaError_t loss_backward(const LossBackwardParams& p, cudaStream_t stream);

size_t soft_loss_forward_workspace(const SoftLossParams& p);
cudaError_t soft_loss_forward(const SoftLossForwardParams& p, void* workspace, cudaStream_t stream);
cudaError_t soft_loss_backward(const SoftLossBackwardParams& p, cudaStream_t stream);

cudaError_t gather(const GatherParams& p, cudaStream_t stream);
cudaError_t gather_backward(const GatherBackwardParams& p, cudaStream_t stream);

size_t components_workspace(const ComponentsParams& p);
cudaError_t components(const ComponentsParams& p, void* workspace, cudaStream_t stream);

}  // namespace entmask::cuda
