// select: one launch for rows that a block holds, four beyond.
#include "select_row.cuh"
#include "select_tiles.cuh"

namespace entmask::cuda {
namespace {

template <typename F>
bool fits_block(int64_t length) {
  return length <= static_cast<int64_t>(block_bytes / sizeof(F));
}

template <typename F>
TileArguments<F> tile_arguments(const SelectParams& p, void* workspace, size_t* bytes) {
  const Tiling tiling(p);
  TileArguments<F> a{static_cast<const F*>(p.scores), p.patches, Rule(p), tiling, Divider(tiling.tiles)};
  *bytes = lay_out(&a, static_cast<char*>(workspace));
  return a;
}

template <typename F>
cudaError_t launch_rank(const SelectParams& p, cudaStream_t stream) {
  const int64_t rows_a_block = p.length < rank_elements ? rank_elements / p.length : 1;
  const int64_t slices = ceil_div(rows_a_block * p.length, rank_elements);
  const dim3 blocks(static_cast<unsigned>(ceil_div(p.rows, rows_a_block) * slices));
  return launch(select_rank_kernel<F>, blocks, dim3(rank_threads), 0, stream, static_cast<const F*>(p.scores),
                p.patches, p.rows, static_cast<int32_t>(rows_a_block), static_cast<int32_t>(slices), Rule(p));
}

template <typename F>
cudaError_t launch_tiles(const SelectParams& p, void* workspace, cudaStream_t stream) {
  size_t bytes;
  const TileArguments<F> a = tile_arguments<F>(p, workspace, &bytes);
  const dim3 blocks(static_cast<unsigned>(p.rows * a.tiling.tiles));
  const size_t histogram = static_cast<size_t>(a.tiling.slots) * next_bins * sizeof(unsigned);
  const auto queue = [&](void (*kernel)(TileArguments<F>), size_t shared_bytes) {
    return launch(kernel, blocks, dim3(tile_threads), shared_bytes, stream, a);
  };
  cudaError_t error = queue(select_first_kernel<F>, 0);
  if (error == cudaSuccess) error = queue(select_second_kernel<F>, histogram);
  if (error == cudaSuccess) error = queue(select_third_kernel<F>, histogram);
  if (error == cudaSuccess) error = queue(select_mark_kernel<F>, 0);
  return error;
}

template <typename F>
cudaError_t launch_select(const SelectParams& p, void* workspace, cudaStream_t stream) {
  if (p.length <= rank_limit) return launch_rank<F>(p, stream);
  if (!fits_block<F>(p.length)) return launch_tiles<F>(p, workspace, stream);
  const int64_t threads = p.length <= 1024 ? 256 : p.length <= 2048 ? 512 : row_block_threads;
  return launch(select_block_kernel<F>, dim3(static_cast<unsigned>(p.rows)), dim3(static_cast<unsigned>(threads)),
                static_cast<size_t>(p.length) * sizeof(Key<F>), stream, static_cast<const F*>(p.scores), p.patches,
                Rule(p));
}

}  // namespace

size_t select_workspace(const SelectParams& p) {
  size_t bytes = 0;
  if (p.is_double ? fits_block<double>(p.length) : fits_block<float>(p.length)) return 0;
  if (p.is_double) {
    tile_arguments<double>(p, nullptr, &bytes);
  } else {
    tile_arguments<float>(p, nullptr, &bytes);
  }
  return bytes;
}

cudaError_t select(const SelectParams& p, void* workspace, cudaStream_t stream) {
  if (p.rows * p.length == 0) return cudaSuccess;
  return p.is_double ? launch_select<double>(p, workspace, stream) : launch_select<float>(p, workspace, stream);
}

}  // namespace entmask::cuda
