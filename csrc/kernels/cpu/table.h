// The stages of one instruction set, gathered into its table by table.cpp.
#pragma once

#include "cpu.h"
#include "simd.h"

namespace entmask::cpu::ENTMASK_ISA {

extern const Stage<EntropyPoolParams> entropy_pool;
extern const Stage<EntropyMapParams> entropy_map;
extern const Stage<EntropyBackwardParams> entropy_backward;
extern const Stage<PseudoLabelsParams> pseudo_labels;
extern const Stage<SelectParams> select;
extern const Stage<WhereParams> where;
extern const Stage<BoxMaskParams> box_mask;
extern const Stage<LossForwardParams> loss_forward;
extern const Stage<LossBackwardParams> loss_backward;
extern const Stage<SoftLossForwardParams> soft_loss_forward;
extern const Stage<SoftLossBackwardParams> soft_loss_backward;
extern const Stage<GatherParams> gather;
extern const Stage<GatherBackwardParams> gather_backward;
extern const Stage<ComponentsParams> components;

}  // namespace entmask::cpu::ENTMASK_ISA
