// shuffle_patches; its gradient is itself the other way round.
#include <ATen/Functions.h>

#include <vector>

#include "ops.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

Tensor shuffle_patches_kernel(const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation, bool inverse) {
  check_image_like(x, "x", "C");
  check_same_device(x, "x", permutation, "permutation");
  grid_shape(x, patch_size);  // checks patch_size
  const Grid grid = make_grid(x, patch_size);
  for (int64_t axis = 2; axis < x.dim(); ++axis)
    TORCH_CHECK_VALUE(x.size(axis) % patch_size[patch_size.size() == 1 ? 0 : axis - 2] == 0,
                      "x must have spatial sizes divisible by patch_size ", patch_size, ", got ", x.sizes());
  TORCH_CHECK_TYPE(permutation.scalar_type() == at::kLong, "permutation must be int64, got ",
                   permutation.scalar_type());
  const int64_t per_image = patches_of(grid), entries = permutation.numel();
  TORCH_CHECK_VALUE(permutation.dim() == 1 && per_image > 0 && entries > 0 && entries % per_image == 0 &&
                        x.size(0) % (entries / per_image) == 0,
                    "permutation must be 1-d with B * ", per_image, " entries (", per_image,
                    " patches per image) where B divides the batch of ", x.size(0), ", got shape ",
                    permutation.sizes());
  const Tensor order = permutation.contiguous();
  // On CUDA the entries are not looked at: that would wait for the device.
  if (order.device().is_cpu()) {
    std::vector<bool> seen(entries);
    const int64_t* const entry = order.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < entries; ++i) {
      TORCH_CHECK_VALUE(entry[i] >= 0 && entry[i] < entries && !seen[entry[i]], "permutation must hold each of 0 to ",
                        entries - 1, " once, got ", entry[i], " at position ", i);
      seen[entry[i]] = true;
    }
  }
  Tensor out = empty_like_format(x);
  ShuffleParams p{};
  p.x = x.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.permutation = order.const_data_ptr<int64_t>();
  p.x_stride = strides_of(x);
  p.out_stride = strides_of(out);
  p.dtype = float_dtype(x, "x");
  p.batch = x.size(0);
  p.channels = x.size(1);
  p.group = entries / per_image;
  p.grid = grid;
  p.inverse = inverse;
  run(p, x.device());
  return out;
}

struct ShufflePatches : torch::autograd::Function<ShufflePatches> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, at::IntArrayRef patch_size,
                        const Tensor& permutation, bool inverse) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->saved_data["inverse"] = inverse;
    ctx->save_for_backward({permutation});
    return shuffle_patches(x, patch_size, permutation, inverse);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
    return {shuffle_patches(grads[0], patch_size, ctx->get_saved_variables()[0], !ctx->saved_data["inverse"].toBool()),
            Tensor(), Tensor(), Tensor()};
  }
};

Tensor shuffle_patches_autograd(const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation, bool inverse) {
  check_no_tangent("shuffle_patches", x);
  if (wants_grad(x)) return ShufflePatches::apply(x, patch_size, permutation, inverse);
  at::AutoDispatchBelowADInplaceOrView below;
  return shuffle_patches(x, patch_size, permutation, inverse);
}

void devices(torch::Library& m) { m.impl("shuffle_patches", shuffle_patches_kernel); }

}  // namespace

Tensor shuffle_patches(const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation, bool inverse) {
  static const auto op = dispatched<decltype(shuffle_patches)>("entmask::shuffle_patches");
  return op.call(x, patch_size, permutation, inverse);
}

TORCH_LIBRARY_FRAGMENT(entmask, m) {
  define_primitive(m, "shuffle_patches(Tensor x, int[] patch_size, Tensor permutation, bool inverse) -> Tensor");
}

ENTMASK_LIBRARY_DEVICES(devices)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) { m.impl("shuffle_patches", shuffle_patches_autograd); }

}  // namespace entmask::ops
