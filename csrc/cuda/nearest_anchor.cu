// nearest_anchor on CUDA:  score_j = min_i 1/K sum_k ||z_j - v_{k,i}||,  index_j = the lowest i that reaches it.
//
// Grid: x = tiles of 64 queries, y = parts of the bank (so that few queries still fill the GPU); 256 threads, 4 queries x
// 4 bank rows each. A block walks its part in tiles of 64 rows; per tile and k the squared distances of tile.cuh are
// rooted and added up, then compared with the running best, which stays in registers. One reduction at the end, then a
// second kernel merges the parts in ascending order. No atomics: deterministic. 2 K M N D operations on CUDA cores, scratch
// M x parts, never M x N. Shared memory: 8.5 KiB (17 KiB in float64) + 12 KiB (16 KiB).
// Ties: a thread sees its rows in ascending order and only a strictly smaller score wins; the reduction compares
// (score, index); parts are merged in order: the lowest index. NaN and +inf are never smaller than the initial +inf.
#include <limits>

#include "tile.cuh"

namespace cox::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, std::is_same_v<T, double> ? 1 : 2)  // registers, not occupancy
    nearest_parts(Rows<T> z, Rows<T> bank, int64_t K, int64_t stride_k, int64_t rows_per_part, acc_t<T>* part_score,
                  int64_t* part_index) {
  using A = acc_t<T>;
  constexpr A inf = std::numeric_limits<A>::infinity();
  __shared__ TileBuffers<A> buffers;
  __shared__ A best_of[kTile][16];
  __shared__ int64_t index_of[kTile][16];
  const int tid = threadIdx.x, row = tid / 16 * 4, lane = tid % 16;
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kTile, part = blockIdx.y;
  const int64_t begin = part * rows_per_part, last = begin + rows_per_part;
  const int64_t end = last < bank.rows ? last : bank.rows;

  A best[4] = {inf, inf, inf, inf};
  int64_t arg[4] = {-1, -1, -1, -1};
  for (int64_t i0 = begin; i0 < end; i0 += kTile) {
    A total[4][4] = {};
    for (int64_t k = 0; k < K; ++k) {
      Rows<T> v = bank;
      v.p += k * stride_k;
      A acc[4][4];
      tile_squares(z, j0, v, i0, buffers, acc);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) total[r][c] += sqrt(acc[r][c]);
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int64_t i = i0 + 4 * lane + c;
        const A s = total[r][c] / static_cast<A>(K);
        if (i < end && s < best[r]) {
          best[r] = s;
          arg[r] = i;
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    best_of[row + r][lane] = best[r];
    index_of[row + r][lane] = arg[r];
  }
  __syncthreads();
  if (tid < kTile && j0 + tid < z.rows) {
    A s = inf;
    int64_t i = -1;
    for (int l = 0; l < 16; ++l) {
      const A b = best_of[tid][l];
      if (b < s || (b == s && b < inf && index_of[tid][l] < i)) {
        s = b;
        i = index_of[tid][l];
      }
    }
    part_score[part * z.rows + j0 + tid] = s;
    part_index[part * z.rows + j0 + tid] = i;
  }
}

template <class A>
__global__ void merge_parts(const A* part_score, const int64_t* part_index, int64_t M, int64_t parts, A* score,
                            int64_t* index) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= M) {
    return;
  }
  A s = std::numeric_limits<A>::infinity();
  int64_t i = -1;
  for (int64_t p = 0; p < parts; ++p) {
    if (part_score[p * M + j] < s) {
      s = part_score[p * M + j];
      i = part_index[p * M + j];
    }
  }
  score[j] = s;
  index[j] = i;
}

std::tuple<Tensor, Tensor> nearest_anchor(Tensor z, Tensor v, int64_t tile) {
  check_nearest_anchor(z, v, tile);
  const DeviceGuard guard(z.get_device_index());
  const int64_t M = z.size(0), K = v.size(0), N = v.size(1);
  const ScalarType acc = acc_dtype(z.scalar_type());
  Tensor score = make(z, {M}, acc), index = make(z, {M}, ScalarType::Long);
  if (M == 0) {
    return {score, index};
  }
  // Parts: about four blocks per multiprocessor; `tile` (tests) sets the rows of a part instead. No result depends on it.
  const int64_t query_tiles = ceil_div(M, kTile), bank_tiles = ceil_div(N, kTile);
  int64_t parts = ceil_div(4 * multiprocessors(z), query_tiles);
  parts = parts < bank_tiles ? parts : bank_tiles;
  parts = parts < 1 ? 1 : (parts > 256 ? 256 : parts);
  int64_t rows_per_part = ceil_div(bank_tiles, parts) * kTile;
  if (tile > 0) {
    rows_per_part = tile < ceil_div(N, 1024) ? ceil_div(N, 1024) : tile;
  }
  parts = N > 0 ? ceil_div(N, rows_per_part) : 1;
  Tensor part_score = make(z, {parts, M}, acc), part_index = make(z, {parts, M}, ScalarType::Long);
  const cudaStream_t stream = current_stream(z);
  for_dtype(z.scalar_type(), [&](auto t) {
    using T = decltype(t);
    using A = acc_t<T>;
    const Rows<T> bank{data<T>(v), N, v.size(2), v.stride(1), v.stride(2)};
    COX_LAUNCH(dim3(grid_size(query_tiles), static_cast<unsigned>(parts)), dim3(kThreads), stream,
               (rows_of<T>(z), bank, K, v.stride(0), rows_per_part, out<A>(part_score), out<int64_t>(part_index)),
               nearest_parts<T>);
    COX_LAUNCH(dim3(grid_size(ceil_div(M, 256))), dim3(256), stream,
               (data<A>(part_score), data<int64_t>(part_index), M, parts, out<A>(score), out<int64_t>(index)),
               merge_parts<A>);
  });
  return {score, index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("nearest_anchor", TORCH_BOX(&nearest_anchor));
}

}  // namespace cox::cuda
