// The kernels on the device of a tensor: parallel over items on the CPU, queued on the current stream on CUDA, with
// scratch memory from torch's allocators. Nothing is checked here.
#pragma once

#include <c10/core/Device.h>

#include "../kernels/params.h"

namespace entmask::ops {

void run(const EntropyPoolParams& p, const c10::Device& device);
void run(const EntropyMapParams& p, const c10::Device& device);
void run(const EntropyBackwardParams& p, const c10::Device& device);
void run(const PseudoLabelsParams& p, const c10::Device& device);
void run(const SelectParams& p, const c10::Device& device);
void run(const WhereParams& p, const c10::Device& device);
void run(const BoxMaskParams& p, const c10::Device& device);
void run(const LossForwardParams& p, const c10::Device& device);
void run(const LossBackwardParams& p, const c10::Device& device);
void run(const SoftLossForwardParams& p, const c10::Device& device);
void run(const SoftLossBackwardParams& p, const c10::Device& device);
void run(const GatherParams& p, const c10::Device& device);
void run(const GatherBackwardParams& p, const c10::Device& device);
void run(const ComponentsParams& p, const c10::Device& device);

}  // namespace entmask::ops
