/*
nearest_anchor, grown: z (M, D), v (K, N, D) float32 -> score (M), index (M); scores in float64, rounded to float32, the lowest
index of the least.

  nvcc -O3 -std=c++17 --expt-relaxed-constexpr -gencode=arch=compute_90,code=sm_90 -DUSE_CUDA \
    -I $(python3 -c 'import torch; print(torch.__path__[0])')/include csrc/dev/nearest_anchor.cu -o nearest_anchor
  ./nearest_anchor [version]

version 1: one warp per query, every pair in float64: the definition
version 2: `exact`: a row that is read serves 4 queries, enough blocks for few queries
version 3: `direct`: tiles of squared differences in float32 as a screen, candidates in float64, then `exact` for what is left
version 4: `screen`: bf16 products on tensor cores (mma.sync, cp.async) as a screen, then version 3 for what is left
2 to 4 are csrc/cuda/nearest_anchor.cuh.

Tried on paper and left out: wgmma with TMA (nothing here could run it, and its descriptors are not worth guessing); survivor
lists with a second kernel (needs an upper bound from the screen as well, a square root and a register per pair, and a
capacity; scoring candidates as they are found needs neither).

Each is compared with a CPU reference in double on Gaussian data, near copies and a constant bank, then timed.
Not run yet: no numbers.
*/
#include <cmath>

#include "../cuda/nearest_anchor.cuh"
#include "bench.cuh"

using namespace cox::cuda;

__global__ void version1(Rows<float> z, Bank<float> v, Key* best) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (j >= z.rows) return;
  Key key = kNoKey;
  for (int64_t i = 0; i < v.N; ++i) {
    const float score = exact_mean(z, j, v, i);
    if (score < INFINITY && key_of(score, i) < key) key = key_of(score, i);
  }
  if (threadIdx.x % 32 == 0) best[j] = key;
}

struct Problem {
  int64_t M, N, K, D, depth, queries, padded;
  OnDevice<float> z, v, centre;
  OnDevice<Key> best;
  OnDevice<int> state, listed;
  OnDevice<int64_t> lists;
  OnDevice<uint32_t> zb, vb;
  OnDevice<Edge> ze, ve;

  Problem(int64_t m, int64_t n, int64_t k, int64_t d, const std::vector<float>& zh, const std::vector<float>& vh)
      : M(m), N(n), K(k), D(d), depth((d + kDepth - 1) / kDepth * kDepth),
        queries((m + kScreenTile - 1) / kScreenTile * kScreenTile), padded((n + kScreenTile - 1) / kScreenTile * kScreenTile),
        z(zh), v(vh), centre(d), best(m), state(m), listed(2), lists(2 * m), zb(queries * depth / 2), vb(k * padded * depth / 2),
        ze(queries), ve(k * padded) {}
};

// As csrc/cuda/nearest_anchor.cu does.
void launch(int version, Problem& p) {
  const Rows<float> z{p.z.p, p.M, p.D, p.D, 1};
  const Bank<float> v{p.v.p, p.K, p.N, p.D, p.N * p.D, p.D, 1};
  const auto blocks = [](int64_t n, int64_t per_block) { return static_cast<unsigned>((n + per_block - 1) / per_block); };
  const Queries to_exact{p.best.p, p.state.p, p.lists.p, p.listed.p, kToExact};
  const Queries to_direct{p.best.p, p.state.p, p.lists.p + p.M, p.listed.p + 1, kToDirect};
  const int most = 64 + static_cast<int>(p.N / 1024);
  const unsigned fit = static_cast<unsigned>(processors());
  CHECK(cudaMemsetAsync(p.listed.p, 0, 2 * sizeof(int)));
  start_queries<float><<<blocks(p.M, 8), kThreads>>>(z, to_exact);
  if (version == 1) {
    version1<<<blocks(p.M, 8), kThreads>>>(z, v, p.best.p);
    return;
  }
  if (version == 2) {
    exact<float><<<4 * fit, kThreads>>>(z, v, Subset{nullptr, nullptr, p.M}, p.best.p, 0);
    return;
  }
  Subset subset{nullptr, nullptr, p.M};
  if (version == 4) {
    const double loss = screen_loss(p.depth), grow = 1 + static_cast<double>(p.K + 8) * 0x1p-21;
    find_centre<float><<<blocks(p.D, 128), 128>>>(v, std::min<int64_t>(std::max<int64_t>(256 / p.K, 1), p.N), p.centre.p);
    round_rows<float><<<blocks(p.queries, 8), kThreads>>>(z, p.centre.p, p.depth, p.queries, loss, grow, p.zb.p, p.ze.p);
    for (int64_t k = 0; k < p.K; ++k) {
      round_rows<float><<<blocks(p.padded, 8), kThreads>>>(Rows<float>{v.p + k * v.sk, v.N, v.d, v.sr, v.sd}, p.centre.p, p.depth,
                                                           p.padded, loss, grow, p.vb.p + k * p.padded * p.depth / 2,
                                                           p.ve.p + k * p.padded);
    }
    const Operands o{reinterpret_cast<const char*>(p.zb.p), reinterpret_cast<const char*>(p.vb.p), p.ze.p, p.ve.p, p.depth,
                     p.padded};
    const auto go = [&](auto* kernel, int bytes) {
      CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      kernel<<<fit, kThreads, bytes>>>(o, AnyRows{z, v, kFloat}, to_direct, most, screen_limit(p.K), 0);
    };
    if (p.K == 1) go(screen<1, true>, ScreenShape<1>::kBytes);
    if (p.K == 2) go(screen<2, true>, ScreenShape<2>::kBytes);
    if (p.K > 2) go(screen<1, false>, ScreenShape<1>::kBytes);
    subset = {to_direct.list, to_direct.listed, p.M};
  }
  direct<float><<<2 * fit, kThreads>>>(z, v, subset, to_exact, most, direct_limit(p.K, p.D), 0);
  exact<float><<<4 * fit, kThreads>>>(z, v, Subset{to_exact.list, to_exact.listed, p.M}, p.best.p, 0);
}

// Queries whose (score, index) is not the reference's.
int64_t validate(int version, int64_t M, int64_t N, int64_t K, int64_t D, int kind) {
  std::vector<float> z = gaussian(static_cast<size_t>(M * D), 1), v = gaussian(static_cast<size_t>(K * N * D), 2);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t i = 0; i < N; ++i) {
      float* row = v.data() + (k * N + i) * D;
      for (int64_t e = 0; e < D; ++e) {
        if (kind == 1 && i % 3 == 0) row[e] = z[i % M * D + e] + 1e-4f * row[e];  // near copies
        if (kind == 2) row[e] = v[e];                                            // all rows alike
      }
    }
  }
  Problem p(M, N, K, D, z, v);
  launch(version, p);
  CHECK(cudaGetLastError());
  const auto got = p.best.host();
  int64_t wrong = 0;
  for (int64_t j = 0; j < M; ++j) {
    float best = INFINITY;
    int64_t index = -1;
    for (int64_t i = 0; i < N; ++i) {
      double total = 0;
      for (int64_t k = 0; k < K; ++k) {
        double sum = 0;
        for (int64_t e = 0; e < D; ++e) {
          const double diff = static_cast<double>(z[j * D + e]) - static_cast<double>(v[(k * N + i) * D + e]);
          sum += diff * diff;
        }
        total += std::sqrt(sum);
      }
      const float score = static_cast<float>(total / static_cast<double>(K));
      if (score < best) {
        best = score;
        index = i;
      }
    }
    wrong += static_cast<int64_t>(got[j] & 0xffffffffu) != index;
  }
  return wrong;
}

int main(int argc, char** argv) {
  const int only = argc > 1 ? std::atoi(argv[1]) : 0;
  int failed = 0;
  for (int version = 1; version <= 4; ++version) {
    if (only && version != only) continue;
    int64_t wrong = 0;
    for (int kind = 0; kind < 3; ++kind) {
      for (const int64_t K : {1, 2, 3}) {
        for (const int64_t D : {1, 31, 32, 33, 100}) wrong += validate(version, 130, 385, K, D, kind);
      }
    }
    std::printf("version %d: %lld wrong\n", version, static_cast<long long>(wrong));
    failed |= wrong != 0;
    for (const int64_t D : {192, 1024}) {
      const int64_t K = 2, M = version < 3 ? 8192 : 65536, N = M;
      Problem p(M, N, K, D, gaussian(static_cast<size_t>(M * D), 3), gaussian(static_cast<size_t>(K * N * D), 4));
      const float ms = median_time([&] { launch(version, p); });
      std::printf("  M = N = %lld, K = 2, D = %lld: %.1f ms, %.1f T multiply-adds/s\n", static_cast<long long>(M),
                  static_cast<long long>(D), ms, static_cast<double>(M) * N * K * D / ms / 1e9);
    }
  }
  return failed;
}
