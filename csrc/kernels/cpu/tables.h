// The stages of one instruction set, gathered into its table by kernels_table.cpp. See cpu.h for what each does.
#pragma once

#include "cpu.h"
#include "simd.h"

namespace entmask::cpu::ENTMASK_ISA {

int64_t entropy_pool_items(const EntropyPoolParams& p);
size_t entropy_pool_workspace(const EntropyPoolParams& p);
void entropy_pool(const EntropyPoolParams& p, void* workspace, int64_t begin, int64_t end);
void entropy_pool_finish(const EntropyPoolParams& p, const void* workspace);

int64_t entropy_map_items(const EntropyMapParams& p);
void entropy_map(const EntropyMapParams& p, int64_t begin, int64_t end);

int64_t entropy_backward_items(const EntropyBackwardParams& p);
void entropy_backward(const EntropyBackwardParams& p, int64_t begin, int64_t end);

void select(const SelectParams& p, int64_t begin, int64_t end);

int64_t apply_mask_items(const ApplyParams& p);
void apply_mask(const ApplyParams& p, int64_t begin, int64_t end);

int64_t loss_items(const LossParams& p);
size_t loss_forward_workspace(const LossParams& p);
void loss_forward(const LossForwardParams& p, void* workspace, int64_t begin, int64_t end);
void loss_forward_finish(const LossForwardParams& p, const void* workspace);
void loss_backward(const LossBackwardParams& p, int64_t begin, int64_t end);

int64_t shuffle_patches_items(const ShuffleParams& p);
void shuffle_patches(const ShuffleParams& p, int64_t begin, int64_t end);

}  // namespace entmask::cpu::ENTMASK_ISA
