// nearest_anchor on the CPU:  score_j = min_i 1/K sum_k ||z_j - v_{k,i}||,  index_j = the lowest i that reaches it.
//
// Blocks of queries x blocks of bank rows, both packed (tile.h); the running best of a query lives in a register pair
// (score, index). Work is cut into (query block, part of the bank); parts of the bank are merged in ascending order.
// Complexity 2 K M N D flops, memory O(M * parts + blocks): never M x N.
// Ties: bank rows are seen in ascending order and only a strictly smaller score wins -> lowest index.
// NaN, Inf: "s < best" is false for NaN, and for +inf against the initial +inf, so neither is ever chosen.
#include <cmath>
#include <limits>

#include "tile.h"

namespace cox::cpu {
namespace {

template <class T>
void run(const Tensor& z, const Tensor& v, int64_t tile, const Tensor& score, const Tensor& index) {
  using A = acc_t<T>;
  constexpr A inf = std::numeric_limits<A>::infinity();
  const int64_t M = z.size(0), D = z.size(1), K = v.size(0), N = v.size(1), dp = padded<A>(D);
  const T* zp = data<T>(z);
  const T* vp = data<T>(v);
  const int64_t zs0 = z.stride(0), zs1 = z.stride(1), vs0 = v.stride(0), vs1 = v.stride(1), vs2 = v.stride(2);
  const tile_fn<A> tile4x4 = pick_tile<A>();

  // None of the sizes below changes a result: see tile.h.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t row_bytes = dp * static_cast<int64_t>(sizeof(A));
  const int64_t bank_rows = tile > 0 ? tile : block_rows(256 << 10, K * row_bytes, 256);
  const int64_t query_rows =
      tile > 0 ? tile
               : std::min(block_rows(1 << 20, row_bytes, 256), round_up(ceil_div(M, 2 * threads), kTile));
  const int64_t query_blocks = ceil_div(M, query_rows), bank_blocks = ceil_div(N, bank_rows);
  const int64_t wanted = ceil_div(2 * threads, query_blocks);
  const int64_t parts = std::max<int64_t>(1, std::min(tile > 0 ? std::max<int64_t>(wanted, 3) : wanted, bank_blocks));

  std::vector<A> part_score(static_cast<size_t>(parts * M), inf);
  std::vector<int64_t> part_index(static_cast<size_t>(parts * M), -1);

  torch::stable::parallel_for(0, query_blocks * parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t bank_pad = round_up(bank_rows, kTile);
    Buffer<A> zb(round_up(query_rows, kTile) * dp), vb(K * bank_pad * dp);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % parts, j0 = item / parts * query_rows, rows = std::min(query_rows, M - j0);
      A* best = part_score.data() + part * M + j0;
      int64_t* arg = part_index.data() + part * M + j0;
      pack_rows(zp + j0 * zs0, zs0, zs1, rows, D, dp, zb.get());
      for (int64_t b = bank_blocks * part / parts; b < bank_blocks * (part + 1) / parts; ++b) {
        const int64_t i0 = b * bank_rows, cols = std::min(bank_rows, N - i0);
        for (int64_t k = 0; k < K; ++k) {
          pack_rows(vp + k * vs0 + i0 * vs1, vs1, vs2, cols, D, dp, vb.get() + k * bank_pad * dp);
        }
        for (int64_t j = 0; j < rows; j += kTile) {
          for (int64_t i = 0; i < cols; i += kTile) {
            A sq[16], total[16] = {};
            for (int64_t k = 0; k < K; ++k) {
              tile4x4(zb.get() + j * dp, vb.get() + (k * bank_pad + i) * dp, dp, sq);
              for (int p = 0; p < 16; ++p) {
                total[p] += std::sqrt(sq[p]);
              }
            }
            const int64_t rr = std::min(kTile, rows - j), cc = std::min(kTile, cols - i);
            for (int64_t r = 0; r < rr; ++r) {
              for (int64_t c = 0; c < cc; ++c) {
                const A s = total[4 * r + c] / static_cast<A>(K);
                if (s < best[j + r]) {
                  best[j + r] = s;
                  arg[j + r] = i0 + i + c;
                }
              }
            }
          }
        }
      }
    }
  });

  A* sp = out<A>(score);
  int64_t* ip = out<int64_t>(index);
  for (int64_t j = 0; j < M; ++j) {
    A best = inf;
    int64_t arg = -1;
    for (int64_t part = 0; part < parts; ++part) {
      if (part_score[part * M + j] < best) {
        best = part_score[part * M + j];
        arg = part_index[part * M + j];
      }
    }
    sp[j] = best;
    ip[j] = arg;
  }
}

std::tuple<Tensor, Tensor> nearest_anchor(Tensor z, Tensor v, int64_t tile) {
  check_nearest_anchor(z, v, tile);
  Tensor score = make(z, {z.size(0)}, acc_dtype(z.scalar_type()));
  Tensor index = make(z, {z.size(0)}, ScalarType::Long);
  if (z.size(0) > 0) {
    for_dtype(z.scalar_type(), [&](auto t) { run<decltype(t)>(z, v, tile, score, index); });
  }
  return {score, index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("nearest_anchor", TORCH_BOX(&nearest_anchor));
}

}  // namespace cox::cpu
