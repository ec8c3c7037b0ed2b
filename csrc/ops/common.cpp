#include "common.h"

#include <ATen/Functions.h>
#include <ATen/Utils.h>

#include <cmath>

namespace entmask::ops {

Dtype float_dtype(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return Dtype::float32;
    case at::kDouble:
      return Dtype::float64;
    case at::kHalf:
      return Dtype::float16;
    case at::kBFloat16:
      return Dtype::bfloat16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be float64, float32, float16 or bfloat16, got ", t.scalar_type());
  }
}

at::ScalarType compute_dtype(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_image_like(const Tensor& t, const char* name, const char* channels) {
  float_dtype(t, name);
  TORCH_CHECK_VALUE(t.layout() == at::kStrided, name, " must be a dense tensor, got layout ", t.layout());
  TORCH_CHECK_VALUE(t.dim() == 4 || t.dim() == 5, name, " must have shape (N, ", channels, ", H, W) or (N, ", channels,
                    ", D, H, W), got ", t.sizes());
}

void check_classes(const Tensor& logits) {
  TORCH_CHECK_VALUE(logits.size(1) >= 2, "logits must have at least 2 classes in dimension 1, got shape ",
                    logits.sizes(), ". For a sigmoid's logit x pass torch.cat([torch.zeros_like(x), x], 1)");
  TORCH_CHECK_VALUE(logits.size(1) <= kMaxClasses, "logits must have at most ", kMaxClasses,
                    " classes in dimension 1, got shape ", logits.sizes());
}

void check_same_device(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  TORCH_CHECK_VALUE(a.device() == b.device(), a_name, " and ", b_name, " must be on the same device, got ", a.device(),
                    " and ", b.device());
}

void check_same_image_sizes(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  TORCH_CHECK_VALUE(a.dim() == b.dim() && a.size(0) == b.size(0) && a.sizes().slice(2) == b.sizes().slice(2), a_name,
                    " and ", b_name, " must agree in batch and spatial sizes, got ", a.sizes(), " and ", b.sizes());
}

Grid make_grid(const Tensor& t, at::IntArrayRef patch_size) {
  const int64_t axes = t.dim() - 2;
  TORCH_CHECK_VALUE(patch_size.size() == 1 || int64_t(patch_size.size()) == axes, "patch_size must be an int or ", axes,
                    " ints for an input with ", axes, " spatial dimensions, got ", patch_size);
  Grid g;
  for (int64_t axis = 0; axis < 3; ++axis) {
    const int64_t i = axis - (3 - axes);
    g.size[axis] = i < 0 ? 1 : t.size(2 + i);
    g.patch[axis] = i < 0 ? 1 : patch_size[patch_size.size() == 1 ? 0 : i];
    TORCH_CHECK_VALUE(g.patch[axis] > 0, "patch_size must be positive, got ", patch_size);
    // A patch larger than the image is the image: sums of sizes cannot overflow.
    g.patch[axis] = std::min(g.patch[axis], std::max<int64_t>(g.size[axis], 1));
    g.count[axis] = (g.size[axis] + g.patch[axis] - 1) / g.patch[axis];
  }
  return g;
}

Grid whole_image(const Tensor& t) {
  const int64_t axes = t.dim() - 2;
  Grid g;
  for (int64_t axis = 0; axis < 3; ++axis) {
    const int64_t i = axis - (3 - axes);
    g.size[axis] = i < 0 ? 1 : t.size(2 + i);
    g.patch[axis] = std::max<int64_t>(g.size[axis], 1);
    g.count[axis] = g.size[axis] > 0 ? 1 : 0;
  }
  return g;
}

int64_t patches_of(const Grid& g) { return g.count[0] * g.count[1] * g.count[2]; }

std::vector<int64_t> grid_shape(const Tensor& t, const Grid& g) {
  std::vector<int64_t> shape{t.size(0)};
  for (int64_t axis = 5 - t.dim(); axis < 3; ++axis) shape.push_back(g.count[axis]);
  return shape;
}

std::vector<int64_t> pixel_shape(const Tensor& t) {
  std::vector<int64_t> shape{t.size(0)};
  for (int64_t i = 2; i < t.dim(); ++i) shape.push_back(t.size(i));
  return shape;
}

Strides strides_of(const Tensor& t) {
  const auto s = t.strides();
  return t.dim() == 5 ? Strides{s[0], s[1], s[2], s[3], s[4]} : Strides{s[0], s[1], 0, s[2], s[3]};
}

Strides pixel_strides_of(const Tensor& t) {
  const auto s = t.strides();
  return t.dim() == 4 ? Strides{s[0], 0, s[1], s[2], s[3]} : Strides{s[0], 0, 0, s[1], s[2]};
}

void check_fraction(double value, const char* name) {
  TORCH_CHECK_VALUE(value >= 0 && value <= 1, name, " must be in [0, 1], got ", value);
}

Scalar make_scalar(const Number& n, double fallback, const at::Device& device) {
  if (!n.tensor.has_value()) {
    const double value = n.value.value_or(fallback);
    TORCH_CHECK_VALUE(!std::isnan(value), n.name, " must be a number, got NaN");
    return {value, nullptr, Dtype::float64};
  }
  const Tensor& t = *n.tensor;
  TORCH_CHECK_VALUE(!n.value.has_value(), n.name, " was given twice, as a number and as a tensor");
  const Dtype dtype = float_dtype(t, n.name);
  TORCH_CHECK_VALUE(t.dim() == 0, n.name, " must be a float or a 0-d tensor, got a tensor of shape ", t.sizes());
  if (t.device().is_cpu()) {
    const double value = t.item<double>();
    TORCH_CHECK_VALUE(!std::isnan(value), n.name, " must be a number, got NaN");
    return {value, nullptr, Dtype::float64};
  }
  TORCH_CHECK_VALUE(t.device() == device, n.name, " must be on the CPU or on ", device, ", got ", t.device());
  return {fallback, t.const_data_ptr(), dtype};
}

Scalar make_fraction(const Number& n, double fallback, const at::Device& device) {
  const Scalar s = make_scalar(n, fallback, device);
  if (!s.device) check_fraction(s.value, n.name);
  return s;
}

Tensor empty_like_format(const Tensor& t) { return at::empty(t.sizes(), t.options(), t.suggest_memory_format()); }

}  // namespace entmask::ops
