// The CPU kernels as the ops see them: one table an instruction set, chosen once at run time.
//
// A kernel works on the items [begin, end) of its stage; items are cut by the shape alone, never by the number of
// threads, and each writes its own outputs, so that results are bitwise the same however the items are shared out. The
// op runs the items in parallel. The stages that sum over many items (loss, patches of more than one item) write one
// partial sum an item into `workspace`, and a finishing function adds these up in a fixed order.
#pragma once

#include <cstddef>

#include "../params.h"

namespace entmask::cpu {

struct Kernels {
  const char* name;  // "avx512", "avx2", "baseline"

  int64_t (*entropy_pool_items)(const EntropyPoolParams&);
  size_t (*entropy_pool_workspace)(const EntropyPoolParams&);  // bytes; 0: no finish needed
  void (*entropy_pool)(const EntropyPoolParams&, void* workspace, int64_t begin, int64_t end);
  void (*entropy_pool_finish)(const EntropyPoolParams&, const void* workspace);

  int64_t (*entropy_map_items)(const EntropyMapParams&);
  void (*entropy_map)(const EntropyMapParams&, int64_t begin, int64_t end);

  int64_t (*entropy_backward_items)(const EntropyBackwardParams&);
  void (*entropy_backward)(const EntropyBackwardParams&, int64_t begin, int64_t end);

  void (*select)(const SelectParams&, int64_t begin, int64_t end);  // items: rows

  int64_t (*apply_mask_items)(const ApplyParams&);
  void (*apply_mask)(const ApplyParams&, int64_t begin, int64_t end);

  int64_t (*loss_items)(const LossParams&);
  size_t (*loss_forward_workspace)(const LossParams&);
  void (*loss_forward)(const LossForwardParams&, void* workspace, int64_t begin, int64_t end);
  void (*loss_forward_finish)(const LossForwardParams&, const void* workspace);
  void (*loss_backward)(const LossBackwardParams&, int64_t begin, int64_t end);

  int64_t (*shuffle_patches_items)(const ShuffleParams&);
  void (*shuffle_patches)(const ShuffleParams&, int64_t begin, int64_t end);
};

// The best table that this processor runs.
const Kernels& kernels();

// One table an instruction set, each from the same sources compiled again (see setup.py); nullptr where not built.
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
