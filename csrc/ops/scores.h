// The scores stage, as patch_scores and patch_mask share it.
#pragma once

#include "common.h"

namespace entmask::ops {

// score is "mean" or "count", else ValueError.
bool is_count(std::string_view score);

inline Scalar make_threshold(double threshold, const OptionalTensor& tensor, const at::Device& device) {
  return make_scalar({"threshold", tensor ? std::nullopt : std::optional<double>(threshold), tensor}, 0, device);
}

EntropyPoolParams pool_params(const Tensor& logits, const Grid& grid, bool count, const Scalar& threshold,
                              const Tensor& scores);

}  // namespace entmask::ops
