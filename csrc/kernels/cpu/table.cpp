// The table of one instruction set.
#include "table.h"

#define ENTMASK_STRING2(x) #x
#define ENTMASK_STRING(x) ENTMASK_STRING2(x)

namespace entmask::cpu::ENTMASK_ISA {

const Kernels table = {
    ENTMASK_STRING(ENTMASK_ISA),
    &entropy_pool,
    &entropy_map,
    &entropy_backward,
    &pseudo_labels,
    &select,
    &where,
    &box_mask,
    &loss_forward,
    &loss_backward,
    &soft_loss_forward,
    &soft_loss_backward,
    &gather,
    &gather_backward,
    &components,
};

}  // namespace entmask::cpu::ENTMASK_ISA
