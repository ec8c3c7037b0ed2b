// The CPU kernels as the ops see them: one table per instruction set, chosen once at run time.
//
// A kernel works on the items [begin, end) of its stage; items are cut by the shape alone, never by the number of
// threads, and each writes its own outputs, so that results are bitwise the same however the items are shared out. The
// op runs the items in parallel. The stages that sum over many items (loss, patches of more than one item) write one
// partial sum per item into the workspace, and `finish` adds these up in a fixed order.
#pragma once

#include <cstddef>

#include "../params.h"

namespace entmask::cpu {

// Memory from the op's allocator, 64-byte aligned, contents undefined.
struct Memory {
  void* workspace;  // one for all items
  void* scratch;    // one for each call of run: what would not fit the stack of a small thread
};

template <class P>
struct Stage {
  int64_t (*items)(const P&);
  void (*run)(const P&, const Memory&, int64_t begin, int64_t end);
  size_t (*scratch)(const P&);                      // bytes; nullptr: none
  size_t (*workspace)(const P&);                    // bytes; nullptr: none
  void (*finish)(const P&, const void* workspace);  // after all items; nullptr: nothing left to do
};

struct Kernels {
  const char* name;  // "avx512", "avx2", "baseline"
  const Stage<EntropyPoolParams>* entropy_pool;
  const Stage<EntropyMapParams>* entropy_map;
  const Stage<EntropyBackwardParams>* entropy_backward;
  const Stage<PseudoLabelsParams>* pseudo_labels;
  const Stage<SelectParams>* select;
  const Stage<WhereParams>* where;
  const Stage<BoxMaskParams>* box_mask;
  const Stage<LossForwardParams>* loss_forward;
  const Stage<LossBackwardParams>* loss_backward;
  const Stage<SoftLossForwardParams>* soft_loss_forward;
  const Stage<SoftLossBackwardParams>* soft_loss_backward;
  const Stage<GatherParams>* gather;
  const Stage<GatherBackwardParams>* gather_backward;
  const Stage<ComponentsParams>* components;
};

// The best table that this processor runs.
const Kernels& kernels();

// One table per instruction set, each from the same sources compiled again; declared where not built, too.
namespace baseline {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}

}  // namespace entmask::cpu
