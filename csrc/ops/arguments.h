// Argument checks and the way from tensors to the kernels' plain structs.
//
// The checks read symbolic sizes, so that they also hold while torch.compile traces; what makes a kernel's struct
// (make_*, strides) needs real ones.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Scalar.h>
#include <c10/core/SymInt.h>
#include <c10/util/DimVector.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "../kernels/params.h"

namespace entmask::ops {

using at::Tensor;
using std::optional;
using std::string_view;
using OptionalTensor = std::optional<Tensor>;
using Shape = c10::SymDimVector;  // on the stack

// float64, float32, float16 or bfloat16, else TypeError.
Dtype float_dtype(const Tensor& t, const char* name);
// What the arithmetic is done in and what scores, entropies and losses are returned in: float64 for float64, else
// float32.
at::ScalarType compute_dtype(const Tensor& t);

// Positions along an axis are below it: they are 32 bits in the CUDA kernels.
constexpr int64_t kAxisLimit = int64_t(1) << 31;
// Every axis shorter than that. Sizes that are symbols pass; the kernels' own call has numbers.
void check_axes(const Tensor& t, const char* name);
// What patches are moved in: floating, bool, uint8 or int8 to int64, dense.
void check_movable(const Tensor& t, const char* name);
// (N, C, H, W) or (N, C, D, H, W), floating.
void check_image_like(const Tensor& t, const char* name, const char* channels);
// (N, K, *S), floating, 2 to kMaxClasses classes.
void check_logits(const Tensor& logits);
void check_same_device(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name);
// Equal N and spatial sizes of (N, C, *S) tensors.
void check_same_image_sizes(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name);
// The shape that an argument must have; `why` follows it in the message.
template <class... Why>
void check_shape(const Tensor& t, const char* name, c10::SymIntArrayRef shape, const Why&... why) {
  TORCH_CHECK_VALUE(t.sym_sizes().equals(shape), name, " must have shape ", shape, why..., ", got ", t.sym_sizes());
}

// None, bool or the image's dtype.
void check_mask_dtype(const Tensor& image, optional<at::ScalarType> dtype);
// The number in a dtype: uint64 of its bits. ValueError for one that the dtype cannot represent; a fraction that a
// floating dtype rounds is representable, infinities and NaN are as well.
uint64_t bits_of(const at::Scalar& number, const char* name, at::ScalarType dtype);

// Spatial axes of an (N, C, *S) tensor start at 2, of an (N, *S) one at 1.
Shape spatial_sizes(const Tensor& t, int64_t first_axis = 2);
// (N, *G), G = ceil(S / patch_size); checks patch_size: one positive int per axis, or one for all.
Shape grid_shape(const c10::SymInt& images, const Shape& sizes, at::IntArrayRef patch_size);
Shape grid_shape(const Tensor& t, at::IntArrayRef patch_size);
// (N, *S)
Shape pixel_shape(const Tensor& t);

// The patch grid over the spatial axes; patch_size has been checked.
Grid make_grid(at::IntArrayRef sizes, at::IntArrayRef patch_size);
Grid make_grid(const Tensor& t, at::IntArrayRef patch_size);
// One patch that is the whole image.
Grid whole_image(const Tensor& t);
int64_t patches_of(const Grid& g);

// Strides of an (N, C, *S) tensor, and of an (N, *S) one.
Strides strides_of(const Tensor& t);
Strides pixel_strides_of(const Tensor& t);

// A number as an op takes it: a value, or a tensor that holds one (0-d) or one per image (N values).
struct NumberArgument {
  const char* name;
  optional<double> value;
  const OptionalTensor& tensor;
  bool fraction;  // in [0, 1]
  bool counts;    // an integer tensor is legal too
  bool is_tensor() const { return tensor.has_value() && tensor->defined(); }
  bool given() const { return value.has_value() || is_tensor(); }
  bool per_image() const { return is_tensor() && tensor->dim() == 1; }
};

// What can be said of it without reading a tensor's values. `device`: that of the tensor that it is about.
void check_number(const NumberArgument& n, const c10::SymInt& images, const at::Device& device);
// What the host knows of it: the value, or a 0-d tensor on the CPU, which is read and checked now.
optional<double> known_value(const NumberArgument& n);
// The number for a kernel, and the tensor that it reads, where it reads one. On the CPU that tensor is of `dtype`.
struct HeldNumber {
  Number number;
  Tensor memory;
};
HeldNumber make_number(const NumberArgument& n, at::ScalarType dtype, const at::Device& device);

void check_fraction(double value, const char* name);
// floor(fraction * n + 1e-6), at most n: the product is rounded, then the sum, on every machine.
int64_t share(double fraction, int64_t n);

// contiguous or channels_last(_3d), whichever t's strides look like: what an output shaped like t is allocated in.
Tensor empty_like_format(const Tensor& t);

}  // namespace entmask::ops
