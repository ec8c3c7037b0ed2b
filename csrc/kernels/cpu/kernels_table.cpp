// The table of one instruction set: compiled once for each, like every kernels_*.cpp.
#include "tables.h"

#define ENTMASK_STRING2(x) #x
#define ENTMASK_STRING(x) ENTMASK_STRING2(x)

namespace entmask::cpu::ENTMASK_ISA {

const Kernels table = {
    ENTMASK_STRING(ENTMASK_ISA),
    entropy_pool_items,
    entropy_pool_workspace,
    entropy_pool,
    entropy_pool_finish,
    entropy_map_items,
    entropy_map,
    entropy_backward_items,
    entropy_backward,
    select,
    apply_mask_items,
    apply_mask,
    loss_items,
    loss_forward_workspace,
    loss_forward,
    loss_forward_finish,
    loss_backward,
    shuffle_patches_items,
    shuffle_patches,
};

}  // namespace entmask::cpu::ENTMASK_ISA
