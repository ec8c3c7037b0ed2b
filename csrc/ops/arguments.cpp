#include "arguments.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace entmask::ops {
namespace {

optional<Dtype> known_float(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Dtype::float32;
    case at::kDouble:
      return Dtype::float64;
    case at::kHalf:
      return Dtype::float16;
    case at::kBFloat16:
      return Dtype::bfloat16;
    default:
      return std::nullopt;
  }
}

bool is_integer(at::ScalarType type) {
  return type == at::kByte || type == at::kChar || type == at::kShort || type == at::kInt || type == at::kLong;
}

bool is_count(const NumberArgument& n) { return n.is_tensor() && is_integer(n.tensor->scalar_type()); }

void check_value(double value, const NumberArgument& n) {
  TORCH_CHECK_VALUE(!std::isnan(value), n.name, " must be a number, got NaN");
  if (n.fraction) check_fraction(value, n.name);
}

template <class T>
uint64_t bits_of(const at::Scalar& number, const char* name, at::ScalarType dtype) {
  uint64_t bits = 0;
  T stored;
  if constexpr (std::is_floating_point_v<T> || std::is_same_v<T, at::Half> || std::is_same_v<T, at::BFloat16>) {
    const double value = number.toDouble();
    stored = static_cast<T>(value);
    TORCH_CHECK_VALUE(!std::isfinite(value) || std::isfinite(static_cast<double>(stored)), name, " must fit ", dtype,
                      ", got ", value);
  } else {
    const bool whole = !number.isFloatingPoint() ||
                       (std::trunc(number.toDouble()) == number.toDouble() && std::abs(number.toDouble()) < 0x1p63);
    const int64_t value = whole ? number.to<int64_t>() : 0;
    stored = static_cast<T>(value);
    TORCH_CHECK_VALUE(whole && static_cast<int64_t>(stored) == value, name, " must be a number that ", dtype,
                      " represents, got ", number);
  }
  std::memcpy(&bits, &stored, sizeof stored);
  return bits;
}

}  // namespace

Dtype float_dtype(const Tensor& t, const char* name) {
  const auto dtype = known_float(t.scalar_type());
  TORCH_CHECK_TYPE(dtype.has_value(), name, " must be float64, float32, float16 or bfloat16, got ", t.scalar_type());
  return *dtype;
}

at::ScalarType compute_dtype(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_axes(const Tensor& t, const char* name) {
  for (const c10::SymInt& size : t.sym_sizes()) {
    const auto known = size.maybe_as_int();
    TORCH_CHECK_VALUE(!known || *known < kAxisLimit, name, " must have axes shorter than 2^31, got shape ",
                      t.sym_sizes());
  }
}

void check_movable(const Tensor& t, const char* name) {
  const at::ScalarType type = t.scalar_type();
  TORCH_CHECK_TYPE(type == at::kBool || is_integer(type) || known_float(type), name,
                   " must be floating, bool, uint8 or int8 to int64, got ", type);
  TORCH_CHECK_VALUE(t.layout() == at::kStrided, name, " must be a dense tensor, got layout ", t.layout());
  check_axes(t, name);
}

void check_image_like(const Tensor& t, const char* name, const char* channels) {
  float_dtype(t, name);
  TORCH_CHECK_VALUE(t.layout() == at::kStrided, name, " must be a dense tensor, got layout ", t.layout());
  TORCH_CHECK_VALUE(t.dim() == 4 || t.dim() == 5, name, " must have shape (N, ", channels, ", H, W) or (N, ", channels,
                    ", D, H, W), got ", t.sym_sizes());
  check_axes(t, name);
}

void check_logits(const Tensor& logits) {
  check_image_like(logits, "logits", "K");
  TORCH_CHECK_VALUE(logits.sym_size(1) >= 2, "logits must have at least 2 classes in dimension 1, got shape ",
                    logits.sym_sizes(), ". For a sigmoid's logit x pass torch.cat([torch.zeros_like(x), x], 1)");
  TORCH_CHECK_VALUE(logits.sym_size(1) <= kMaxClasses, "logits must have at most ", kMaxClasses,
                    " classes in dimension 1, got shape ", logits.sym_sizes());
}

void check_same_device(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  TORCH_CHECK_VALUE(a.device() == b.device(), a_name, " and ", b_name, " must be on the same device, got ", a.device(),
                    " and ", b.device());
}

void check_same_image_sizes(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  bool same = a.dim() == b.dim();
  for (int64_t axis = 0; same && axis < a.dim(); ++axis) same = axis == 1 || a.sym_size(axis) == b.sym_size(axis);
  TORCH_CHECK_VALUE(same, a_name, " and ", b_name, " must agree in batch and spatial sizes, got ", a.sym_sizes(),
                    " and ", b.sym_sizes());
}

Shape spatial_sizes(const Tensor& t, int64_t first_axis) {
  const auto sizes = t.sym_sizes();
  return Shape(sizes.begin() + first_axis, sizes.end());
}

Shape grid_shape(const c10::SymInt& images, const Shape& sizes, at::IntArrayRef patch_size) {
  const size_t axes = sizes.size();
  TORCH_CHECK_VALUE(patch_size.size() == 1 || patch_size.size() == axes, "patch_size must be an int or ", axes,
                    " ints for an input with ", axes, " spatial dimensions, got ", patch_size);
  Shape shape{images};
  for (size_t i = 0; i < axes; ++i) {
    const int64_t patch = patch_size[patch_size.size() == 1 ? 0 : i];
    TORCH_CHECK_VALUE(patch > 0, "patch_size must be positive, got ", patch_size);
    const int64_t width = std::min(patch, int64_t(1) << 48);  // the sum below cannot overflow
    shape.push_back((sizes[i] + (width - 1)) / width);
  }
  return shape;
}

Shape grid_shape(const Tensor& t, at::IntArrayRef patch_size) {
  return grid_shape(t.sym_size(0), spatial_sizes(t), patch_size);
}

Shape pixel_shape(const Tensor& t) {
  Shape shape{t.sym_size(0)};
  for (int64_t axis = 2; axis < t.dim(); ++axis) shape.push_back(t.sym_size(axis));
  return shape;
}

Grid make_grid(at::IntArrayRef sizes, at::IntArrayRef patch_size) {
  const int64_t missing = 3 - int64_t(sizes.size());
  Grid g;
  for (int64_t axis = 0; axis < 3; ++axis) {
    const int64_t i = axis - missing;
    g.size[axis] = i < 0 ? 1 : sizes[i];
    // A patch larger than the image is the image: sums of sizes cannot overflow.
    const int64_t patch = i < 0 ? 1 : patch_size[patch_size.size() == 1 ? 0 : i];
    g.patch[axis] = std::min(patch, std::max<int64_t>(g.size[axis], 1));
    g.count[axis] = (g.size[axis] + g.patch[axis] - 1) / g.patch[axis];
  }
  return g;
}

Grid make_grid(const Tensor& t, at::IntArrayRef patch_size) { return make_grid(t.sizes().slice(2), patch_size); }

Grid whole_image(const Tensor& t) {
  const auto sizes = t.sizes().slice(2);
  return make_grid(sizes, std::max<int64_t>(1, *std::max_element(sizes.begin(), sizes.end())));
}

int64_t patches_of(const Grid& g) { return g.count[0] * g.count[1] * g.count[2]; }

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

void check_number(const NumberArgument& n, const c10::SymInt& images, const at::Device& device) {
  if (!n.is_tensor()) {
    if (n.value) check_value(*n.value, n);
    return;
  }
  TORCH_CHECK_VALUE(!n.value, n.name, " was given twice, as a number and as a tensor");
  const Tensor& t = *n.tensor;
  TORCH_CHECK_TYPE(
      known_float(t.scalar_type()) || (n.counts && is_count(n)), n.name,
      n.counts ? " must be a floating, uint8 or int8 to int64 tensor, got " : " must be a floating tensor, got ",
      t.scalar_type());
  TORCH_CHECK_VALUE(t.layout() == at::kStrided, n.name, " must be a dense tensor, got layout ", t.layout());
  TORCH_CHECK_VALUE(t.dim() == 0 || (t.dim() == 1 && t.sym_size(0) == images), n.name,
                    " must be a number, a 0-d tensor or one value per image, shape [", images,
                    "], got a tensor of shape ", t.sym_sizes());
  TORCH_CHECK_VALUE(t.device() == device || (t.dim() == 0 && t.device().is_cpu()), n.name, " must be on ",
                    t.dim() == 0 ? "the CPU or on " : "", device, ", got ", t.device());
}

optional<double> known_value(const NumberArgument& n) {
  if (!n.is_tensor()) return n.value;
  if (n.tensor->dim() > 0 || !n.tensor->device().is_cpu() || is_count(n)) return std::nullopt;
  const double value = n.tensor->item<double>();
  check_value(value, n);
  return value;
}

HeldNumber make_number(const NumberArgument& n, at::ScalarType dtype, const at::Device& device) {
  if (const auto value = known_value(n)) return {{*value, nullptr, 0, Dtype::float64}, Tensor()};
  if (!n.is_tensor()) return {{0, nullptr, 0, Dtype::float64}, Tensor()};
  Tensor t = is_count(n) ? n.tensor->to(at::kLong) : device.is_cpu() ? n.tensor->to(dtype) : *n.tensor;
  t = t.detach().contiguous();
  const Dtype type = is_count(n) ? Dtype::int64 : float_dtype(t, n.name);
  return {{0, t.const_data_ptr(), t.dim(), type}, t};
}

int64_t share(double fraction, int64_t n) {
  const double product = fraction * double(n);
  return std::min(n, int64_t(product + 1e-6));
}

uint64_t bits_of(const at::Scalar& number, const char* name, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(!number.isComplex(), name, " must be a real number, got ", number);
  TORCH_CHECK_TYPE(!number.isBoolean() || dtype == at::kBool, name, " must be a number for ", dtype, ", got a bool");
  switch (dtype) {
    case at::kDouble:
      return bits_of<double>(number, name, dtype);
    case at::kFloat:
      return bits_of<float>(number, name, dtype);
    case at::kHalf:
      return bits_of<at::Half>(number, name, dtype);
    case at::kBFloat16:
      return bits_of<at::BFloat16>(number, name, dtype);
    case at::kBool:
      return bits_of<bool>(number, name, dtype);
    case at::kByte:
      return bits_of<uint8_t>(number, name, dtype);
    case at::kChar:
      return bits_of<int8_t>(number, name, dtype);
    case at::kShort:
      return bits_of<int16_t>(number, name, dtype);
    case at::kInt:
      return bits_of<int32_t>(number, name, dtype);
    case at::kLong:
      return bits_of<int64_t>(number, name, dtype);
    default:
      TORCH_CHECK_TYPE(false, name, " is a number for floating, bool, uint8 and int8 to int64 tensors, got ", dtype);
  }
}

void check_mask_dtype(const Tensor& image, optional<at::ScalarType> dtype) {
  TORCH_CHECK_VALUE(!dtype || *dtype == at::kBool || *dtype == image.scalar_type(),
                    "mask_dtype must be None, torch.bool or the image's dtype ", image.scalar_type(), ", got ", *dtype);
}

Tensor empty_like_format(const Tensor& t) { return at::empty(t.sizes(), t.options(), t.suggest_memory_format()); }

}  // namespace entmask::ops
