// largest_components: of each class the component with the most pixels.
#include <ATen/Functions.h>

#include <algorithm>

#include "arguments.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

Tensor largest_components_kernel(const Tensor& labels, int64_t num_classes, int64_t connectivity) {
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kByte || labels.scalar_type() == at::kLong,
                   "labels must be uint8 or int64, got ", labels.scalar_type());
  TORCH_CHECK_VALUE(labels.layout() == at::kStrided, "labels must be a dense tensor, got layout ", labels.layout());
  TORCH_CHECK_VALUE(labels.dim() == 3 || labels.dim() == 4, "labels must have shape (N, H, W) or (N, D, H, W), got ",
                    labels.sizes());
  TORCH_CHECK_VALUE(num_classes >= 2 && num_classes <= 65536, "num_classes must be in [2, 65536], got ", num_classes);
  TORCH_CHECK_VALUE(connectivity >= 1 && connectivity < labels.dim(), "connectivity must be in [1, ", labels.dim() - 1,
                    "] for labels of shape ", labels.sizes(), ", got ", connectivity);
  check_axes(labels, "labels");
  int64_t pixels = 1;
  for (int64_t axis = 1; axis < labels.dim(); ++axis)
    pixels = std::min(kAxisLimit, pixels * labels.size(axis));  // the product of three axes may overflow
  TORCH_CHECK_VALUE(pixels < kAxisLimit, "labels must have fewer than 2^31 pixels per image, got shape ",
                    labels.sizes());
  const Tensor in = labels.contiguous(), out = at::empty(labels.sizes(), in.options());
  if (out.numel() == 0) return out;
  ComponentsParams p{};
  p.labels = in.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.label_dtype = labels.scalar_type() == at::kByte ? LabelDtype::uint8 : LabelDtype::int64;
  p.batch = labels.size(0);
  for (int64_t axis = 0; axis < 3; ++axis)
    p.size[axis] = axis < 4 - labels.dim() ? 1 : labels.size(axis - 3 + labels.dim());
  p.classes = num_classes;
  p.connectivity = connectivity;
  run(p, labels.device());
  return out;
}

void devices(torch::Library& m) { m.impl("largest_components", largest_components_kernel); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(entmask, m) {
  define_primitive(m, "largest_components(Tensor labels, int num_classes, int connectivity) -> Tensor");
}

ENTMASK_LIBRARY_DEVICES(devices)

}  // namespace entmask::ops
