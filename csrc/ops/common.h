// Argument checks and the way from tensors to the kernels' plain structs.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "../kernels/params.h"

namespace entmask::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// An op's number that may also be a 0-d tensor: `name` for messages.
struct Number {
  const char* name;
  std::optional<double> value;
  const OptionalTensor& tensor;

  bool given() const { return value.has_value() || tensor.has_value(); }
};

// float64, float32, float16 or bfloat16, else TypeError.
Dtype float_dtype(const Tensor& t, const char* name);
// What the arithmetic is done in and what scores, entropies and losses are returned in: float64 for float64, else
// float32.
at::ScalarType compute_dtype(const Tensor& t);

// (N, C, H, W) or (N, C, D, H, W), floating.
void check_image_like(const Tensor& t, const char* name, const char* channels);
void check_classes(const Tensor& logits);
void check_same_device(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name);
// Equal N and spatial sizes.
void check_same_image_sizes(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name);

// The patch grid over the spatial axes of an (N, C, *S) tensor; patch_size: one int an axis, or one for all.
Grid make_grid(const Tensor& t, at::IntArrayRef patch_size);
// One patch that is the whole image.
Grid whole_image(const Tensor& t);
int64_t patches_of(const Grid& g);
// (N, *G) as a shape of t's rank - 1.
std::vector<int64_t> grid_shape(const Tensor& t, const Grid& g);
// (N, *S)
std::vector<int64_t> pixel_shape(const Tensor& t);

// Strides of an (N, C, *S) tensor, and of an (N, *S) one.
Strides strides_of(const Tensor& t);
Strides pixel_strides_of(const Tensor& t);

// A number for a kernel that runs on `device`: a tensor on the CPU is read now, one on the device is read by the
// kernel.
Scalar make_scalar(const Number& n, double fallback, const at::Device& device);
// The same for a fraction: a value that is known here must be in [0, 1].
Scalar make_fraction(const Number& n, double fallback, const at::Device& device);
void check_fraction(double value, const char* name);

// contiguous or channels_last(_3d), whichever t's strides look like: what an output shaped like t is allocated in.
Tensor empty_like_format(const Tensor& t);

}  // namespace entmask::ops
