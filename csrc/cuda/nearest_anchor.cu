// nearest_anchor on CUDA:  score_j = min_i 1/K sum_k ||z_j - v_{k,i}||,  index_j = the lowest i that reaches it.
//
// Scores are sums of squared differences in float64, rounded to float32 (exact_mean), the index the lowest one of the least
// rounded score. Almost all pairs are ruled out by a cheaper screen that proves that they cannot win; the few others are
// scored as they are found, which tightens the proof for the rest. Three kernels, each for the queries that the one before
// had too many candidates for (64 + N / 1024: near copies, constant banks), and each gone at once where there are none:
//   screen   only with COX_CUDA_SCREEN=1: bf16 products on tensor cores, float32 accumulation; the bound is in
//            nearest_anchor.cuh. 128 queries x 128 bank rows x 1 or 2 mappings per block of 256 threads, operands in 68 or
//            78 KiB of shared memory by asynchronous copies; bf16 copies of z and v are its scratch. For a float32 bank.
//   direct   squared differences in float32 (tile.cuh), 64 x 64 pairs per block of 256 threads
//   exact    squared differences in float64, a warp per bank row and 4 queries
// A grid is as many blocks as run at once; they share out tiles of queries x parts of the bank. 2 K M N D operations, scratch
// O(M) beside the screen's operands, never M x N. No synchronisation with the host.
// Ties and order: the best of a query is one 64-bit key (score, index), lowered by atomicMin: the result is the same whatever
// the order, the parts or the kernel. NaN, Inf: such a query or bank row is never scored as eligible; index -1, score +inf.
// float64: every distance directly, one kernel, parts of the bank merged in ascending order by a second one.
#include <cstdlib>

#include "nearest_anchor.cuh"

namespace cox::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, 1)
    nearest_parts(Rows<double> z, Bank<double> v, int64_t rows_per_part, double* part_score, int64_t* part_index) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  __shared__ TileBuffers<double> buffers;
  __shared__ double best_of[kTile][16];
  __shared__ int64_t index_of[kTile][16];
  const int tid = threadIdx.x, row = tid / 16 * 4, lane = tid % 16;
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kTile, part = blockIdx.y;
  const int64_t begin = part * rows_per_part, last = begin + rows_per_part;
  const int64_t end = last < v.N ? last : v.N;

  double best[4] = {inf, inf, inf, inf};
  int64_t arg[4] = {-1, -1, -1, -1};
  for (int64_t i0 = begin; i0 < end; i0 += kTile) {
    double total[4][4] = {};
    for (int64_t k = 0; k < v.K; ++k) {
      const Rows<double> bank{v.p + k * v.sk, v.N, v.d, v.sr, v.sd};
      double acc[4][4];
      tile_squares(z, j0, bank, i0, buffers, acc);
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
        const double s = total[r][c] / static_cast<double>(v.K);
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
    double s = inf;
    int64_t i = -1;
    for (int l = 0; l < 16; ++l) {
      const double b = best_of[tid][l];
      if (b < s || (b == s && b < inf && index_of[tid][l] < i)) {
        s = b;
        i = index_of[tid][l];
      }
    }
    part_score[part * z.rows + j0 + tid] = s;
    part_index[part * z.rows + j0 + tid] = i;
  }
}

__global__ void merge_parts(const double* part_score, const int64_t* part_index, int64_t M, int64_t parts, double* score,
                            int64_t* index) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= M) {
    return;
  }
  double s = std::numeric_limits<double>::infinity();
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

template <class T>
Bank<T> bank_of(const Tensor& v) {
  return {data<T>(v), v.size(0), v.size(1), v.size(2), v.stride(0), v.stride(1), v.stride(2)};
}

// Rows of a part of the bank that `tile` (tests) asks for; no result depends on it.
int64_t rows_wanted(int64_t tile, int64_t N) {
  return tile > 0 && tile < ceil_div(N, 1024) ? ceil_div(N, 1024) : tile;
}

void in_float64(const Tensor& z, const Tensor& v, int64_t tile, const Tensor& score, const Tensor& index) {
  const int64_t M = z.size(0), N = v.size(1);
  // About four blocks per multiprocessor.
  const int64_t query_tiles = ceil_div(M, kTile), bank_tiles = ceil_div(N, kTile);
  int64_t parts = ceil_div(4 * multiprocessors(z), query_tiles);
  parts = parts < bank_tiles ? parts : bank_tiles;
  parts = parts < 1 ? 1 : (parts > 256 ? 256 : parts);
  const int64_t rows = tile > 0 ? rows_wanted(tile, N) : ceil_div(bank_tiles, parts) * kTile;
  parts = N > 0 ? ceil_div(N, rows) : 1;
  Tensor part_score = make(z, {parts, M}, ScalarType::Double), part_index = make(z, {parts, M}, ScalarType::Long);
  const cudaStream_t stream = current_stream(z);
  COX_LAUNCH(dim3(grid_size(query_tiles), static_cast<unsigned>(parts)), dim3(kThreads), stream,
             (rows_of<double>(z), bank_of<double>(v), rows, out<double>(part_score), out<int64_t>(part_index)),
             nearest_parts);
  COX_LAUNCH(dim3(grid_size(ceil_div(M, 256))), dim3(256), stream,
             (data<double>(part_score), data<int64_t>(part_index), M, parts, out<double>(score), out<int64_t>(index)),
             merge_parts);
}

template <int kMaps, bool kWhole>
void launch_screen(unsigned blocks, cudaStream_t stream, const Operands& o, const AnyRows& rows, const Queries& q, int most,
                   int64_t part_rows) {
  constexpr int bytes = ScreenShape<kMaps>::kBytes;
  COX_ALLOW_SHARED(bytes, screen<kMaps, kWhole>);
  COX_LAUNCH_SHARED(dim3(blocks), dim3(kThreads), bytes, stream, (o, rows, q, most, screen_limit(rows.v.K), part_rows), screen<kMaps, kWhole>);
}

template <class T>
void run_screen(const Tensor& like, const Rows<T>& z, const Bank<T>& v, const Queries& q, int most, int64_t tile) {
  const cudaStream_t stream = current_stream(like);
  const int64_t depth = ceil_div(v.d, kDepth) * kDepth, padded = ceil_div(v.N, kScreenTile) * kScreenTile;
  const int64_t queries = ceil_div(z.rows, kScreenTile) * kScreenTile, warps = kThreads / 32;
  Tensor centre = make(like, {v.d}, ScalarType::Float);
  Tensor zb = make(like, {queries, depth}, ScalarType::BFloat16), vb = make(like, {v.K, padded, depth}, ScalarType::BFloat16);
  Tensor ze = make(like, {queries, 2}, ScalarType::Float), ve = make(like, {v.K, padded, 2}, ScalarType::Float);
  const auto edge = [](const Tensor& t) { return reinterpret_cast<Edge*>(out<float>(t)); };
  const auto operand = [](const Tensor& t) { return static_cast<uint32_t*>(t.mutable_data_ptr()); };
  const double loss = screen_loss(depth), grow = 1 + static_cast<double>(v.K + 8) * 0x1p-21;
  const int64_t sample = v.K < 256 ? (256 / v.K < v.N ? 256 / v.K : v.N) : 1;
  COX_LAUNCH(dim3(grid_size(ceil_div(v.d, 128))), dim3(128), stream, (v, sample, out<float>(centre)), find_centre<T>);
  COX_LAUNCH(dim3(grid_size(ceil_div(queries, warps))), dim3(kThreads), stream,
             (z, data<float>(centre), depth, queries, loss, grow, operand(zb), edge(ze)), round_rows<T>);
  for (int64_t k = 0; k < v.K; ++k) {
    const Rows<T> rows{v.p + k * v.sk, v.N, v.d, v.sr, v.sd};
    COX_LAUNCH(dim3(grid_size(ceil_div(padded, warps))), dim3(kThreads), stream,
               (rows, data<float>(centre), depth, padded, loss, grow, operand(vb) + k * padded * (depth / 2),
                edge(ve) + k * padded),
               round_rows<T>);
  }
  const Operands o{reinterpret_cast<const char*>(operand(zb)), reinterpret_cast<const char*>(operand(vb)), edge(ze), edge(ve),
                   depth, padded};
  const int64_t part_rows = ceil_div(rows_wanted(tile, v.N), kScreenTile) * kScreenTile;
  const int64_t items = queries / kScreenTile * (padded / kScreenTile), fit = multiprocessors(like);
  const unsigned blocks = grid_size(items < fit ? items : fit);
  const AnyRows rows{{reinterpret_cast<const float*>(z.p), z.rows, z.d, z.sr, z.sd},
                     {reinterpret_cast<const float*>(v.p), v.K, v.N, v.d, v.sk, v.sr, v.sd},
                     kTypeOf<T>};
  if (v.K == 1) {
    launch_screen<1, true>(blocks, stream, o, rows, q, most, part_rows);
  } else if (v.K == 2) {
    launch_screen<2, true>(blocks, stream, o, rows, q, most, part_rows);
  } else {
    launch_screen<1, false>(blocks, stream, o, rows, q, most, part_rows);
  }
}

template <class T>
void in_float32(const Tensor& zt, const Tensor& vt, int64_t tile, const Tensor& score, const Tensor& index) {
  const Rows<T> z = rows_of<T>(zt);
  const Bank<T> whole = bank_of<T>(vt);
  const int64_t M = z.rows, processors = multiprocessors(zt);
  const char* wish = std::getenv("COX_CUDA_SCREEN");
  const bool screened = wish != nullptr && wish[0] == '1' && whole.d > 0;
  const cudaStream_t stream = current_stream(zt);
  Tensor best = make(zt, {M}, ScalarType::Long), state = make(zt, {M}, ScalarType::Int);
  Tensor lists = make(zt, {screened ? 2 : 1, M}, ScalarType::Long), listed = make(zt, {2}, ScalarType::Int);
  Key* keys = reinterpret_cast<Key*>(out<int64_t>(best));
  // A list of those to be taken up by `exact`, and one of those by `direct`.
  const Queries to_exact{keys, out<int>(state), out<int64_t>(lists), out<int>(listed), kToExact};
  const Queries to_direct{keys, out<int>(state), out<int64_t>(lists) + (screened ? M : 0), out<int>(listed) + 1, kToDirect};
  const auto blocks = [&](int64_t items, int64_t per_processor) {
    const int64_t fit = per_processor * processors;
    return dim3(grid_size(items < fit ? items : fit));
  };
  constexpr int64_t slab = 0xfffffffe;  // rows that a key can count
  for (int64_t first = 0; first == 0 || first < whole.N; first += slab) {
    Bank<T> v = whole;
    v.p += first * v.sr;
    v.N = whole.N - first < slab ? whole.N - first : slab;
    const int most = 64 + static_cast<int>(v.N / 1024);
    torch::stable::fill_(listed, 0);
    COX_LAUNCH(dim3(grid_size(ceil_div(M, kThreads / 32))), dim3(kThreads), stream, (z, to_exact), start_queries<T>);
    if (v.N > 0) {
      Subset all{nullptr, nullptr, M};
      if (screened) {
        run_screen(zt, z, v, to_direct, most, tile);
        all = {to_direct.list, to_direct.listed, M};
      }
      const int64_t part_rows = rows_wanted(tile, v.N), bank_tiles = ceil_div(v.N, kTile);
      COX_LAUNCH(blocks(ceil_div(M, kTile) * bank_tiles, 2), dim3(kThreads), stream,
                 (z, v, all, to_exact, most, direct_limit(v.K, v.d), part_rows), direct<T>);
      const Subset rest{to_exact.list, to_exact.listed, M};
      COX_LAUNCH(blocks(ceil_div(M, kShared) * bank_tiles, 4), dim3(kThreads), stream, (z, v, rest, keys, part_rows),
                 exact<T>);
    }
    COX_LAUNCH(dim3(grid_size(ceil_div(M, 256))), dim3(256), stream,
               (keys, M, first, out<float>(score), out<int64_t>(index)), finish_queries<float>);
  }
}

std::tuple<Tensor, Tensor> nearest_anchor(Tensor z, Tensor v, int64_t tile) {
  check_nearest_anchor(z, v, tile);
  tile = tile_within(tile, z, v);
  const DeviceGuard guard(z.get_device_index());
  Tensor score = make(z, {z.size(0)}, acc_dtype(z.scalar_type())), index = make(z, {z.size(0)}, ScalarType::Long);
  if (z.size(0) > 0) {
    for_dtype(z.scalar_type(), [&](auto t) {
      if constexpr (std::is_same_v<decltype(t), double>) {
        in_float64(z, v, tile, score, index);
      } else {
        in_float32<decltype(t)>(z, v, tile, score, index);
      }
    });
  }
  return {score, index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("nearest_anchor", TORCH_BOX(&nearest_anchor));
}

}  // namespace cox::cuda
