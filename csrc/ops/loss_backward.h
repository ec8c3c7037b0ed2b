// What the backward of a loss is given beside the inputs of its forward.
#pragma once

#include "arguments.h"

namespace entmask::ops {

// The sums that the forward left: `count` of them, float64.
inline const double* saved_sums(const Tensor& logits, const Tensor& sums, int64_t count) {
  check_same_device(logits, "logits", sums, "sums");
  TORCH_CHECK_TYPE(sums.scalar_type() == at::kDouble, "sums must be float64, got ", sums.scalar_type());
  TORCH_CHECK_VALUE(sums.dim() == 1 && sums.size(0) == count && sums.is_contiguous(),
                    "sums must be contiguous of shape [", count, "], got ", sums.sizes());
  return sums.const_data_ptr<double>();
}

// The gradient of a 0-d output of this dtype.
inline const void* scalar_gradient(const Tensor& logits, const Tensor& grad, const char* name, at::ScalarType dtype) {
  check_same_device(logits, "logits", grad, name);
  TORCH_CHECK_VALUE(grad.dim() == 0 && grad.scalar_type() == dtype, name, " must be a 0-d ", dtype, " tensor, got ",
                    grad.scalar_type(), " of shape ", grad.sizes());
  return grad.const_data_ptr();
}

}  // namespace entmask::ops
