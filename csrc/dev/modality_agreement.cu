/*
modality_agreement, grown: logits (K, M, C) float32 -> per row mask, label, confidence.

  nvcc -O3 -std=c++17 --expt-relaxed-constexpr -gencode=arch=compute_90,code=sm_90 -DUSE_CUDA \
    -I $(python3 -c 'import torch; print(torch.__path__[0])')/include csrc/dev/modality_agreement.cu -o modality_agreement
  ./modality_agreement [version]

version 1: one thread per row and head after head, two passes: the definition, uncoalesced
version 2: one warp per row, a pass for the maximum and a pass for the exponentials
version 3: one warp per row, one pass with a running maximum per lane, kAhead loads in flight: csrc/cuda/agreement.cuh

Each is compared with a CPU reference in double, then timed on 3 x 200,000 x 309 as a share of a device copy's bandwidth.
Not run yet: no numbers.
*/
#include <cmath>
#include <cstring>

#include "../cuda/agreement.cuh"
#include "bench.cuh"

using cox::cuda::Agreement;
using cox::cuda::Logits;

__global__ void version1(Logits<float> l, Agreement<float> to) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= l.M) return;
  bool whole = true, agree = true;
  int64_t first = -1;
  float total = 0;
  for (int64_t k = 0; k < l.K; ++k) {
    const float* row = l.p + k * l.sk + j * l.sm;
    float top = -INFINITY, sum = 0;
    int64_t arg = l.C;
    for (int64_t c = 0; c < l.C; ++c) {
      whole = whole && row[c] < INFINITY;
      if (row[c] > top) {
        top = row[c];
        arg = c;
      }
    }
    whole = whole && arg < l.C;
    for (int64_t c = 0; c < l.C; ++c) sum += expf(row[c] - top);
    total += 1 / sum;
    agree = agree && (k == 0 || arg == first);
    first = k == 0 ? arg : first;
  }
  to.mask[j] = whole && agree;
  to.label[j] = whole && agree ? first : -1;
  to.confidence[j] = whole ? total / static_cast<float>(l.K) : NAN;
}

__global__ void version2(Logits<float> l, Agreement<float> to) {
  const int lane = threadIdx.x % 32;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (j >= l.M) return;
  bool whole = true, agree = true;
  int64_t first = -1;
  float total = 0;
  for (int64_t k = 0; k < l.K; ++k) {
    const float* row = l.p + k * l.sk + j * l.sm;
    float top = -INFINITY, sum = 0;
    long long arg = l.C;
    bool fine = true;
    for (int64_t c = lane; c < l.C; c += 32) {
      fine = fine && row[c] < INFINITY;
      if (row[c] > top) {
        top = row[c];
        arg = c;
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, top, step);
      const long long other_arg = __shfl_xor_sync(0xffffffffu, arg, step);
      if (other > top || (other == top && other_arg < arg)) {
        top = other;
        arg = other_arg;
      }
    }
    whole = whole && __all_sync(0xffffffffu, fine) && arg < l.C;
    for (int64_t c = lane; c < l.C; c += 32) sum += expf(row[c] - top);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    total += 1 / sum;
    agree = agree && (k == 0 || arg == first);
    first = k == 0 ? arg : first;
  }
  if (lane == 0) {
    to.mask[j] = whole && agree;
    to.label[j] = whole && agree ? first : -1;
    to.confidence[j] = whole ? total / static_cast<float>(l.K) : NAN;
  }
}

void launch(int version, const Logits<float>& l, const Agreement<float>& to) {
  const auto blocks = [&](int64_t rows) { return static_cast<unsigned>((l.M + rows - 1) / rows); };
  if (version == 1) version1<<<blocks(256), 256>>>(l, to);
  if (version == 2) version2<<<blocks(8), 256>>>(l, to);
  if (version == 3) cox::cuda::agreement<float><<<blocks(8), 256>>>(l, to);
}

// Rows that differ from the reference. Ties and rows without a softmax are in the data.
int64_t validate(int version, int64_t K, int64_t M, int64_t C) {
  std::vector<float> x = gaussian(static_cast<size_t>(K * M * C), 1);
  for (int64_t j = 0; j < M; ++j) {
    for (int64_t k = 0; k < K; ++k) {
      float* row = x.data() + (k * M + j) * C;
      if (j % 2 == 0) row[j % C] = row[(j + C / 2) % C] = 9;  // a tie of two classes, the same ones in all heads
      if (j % 50 == 1 && k == 0) row[C - 1] = NAN;
      if (j % 50 == 3 && k == K - 1) row[0] = INFINITY;
      if (j % 50 == 5) std::fill(row, row + C, -INFINITY);
    }
  }
  OnDevice<float> logits(x), confidence(static_cast<size_t>(M));
  OnDevice<bool> mask(static_cast<size_t>(M));
  OnDevice<int64_t> label(static_cast<size_t>(M));
  CHECK(cudaMemset(label.p, 0x55, label.n * sizeof(int64_t)));
  launch(version, {logits.p, K, M, C, M * C, C, 1, nullptr, 0, 0}, {mask.p, label.p, confidence.p});
  CHECK(cudaGetLastError());
  const auto got_label = label.host();
  const auto got = confidence.host();
  int64_t wrong = 0;
  for (int64_t j = 0; j < M; ++j) {
    bool whole = true, agree = true;
    int64_t first = -1;
    double total = 0;
    for (int64_t k = 0; k < K; ++k) {
      const float* row = x.data() + (k * M + j) * C;
      int64_t arg = -1;
      double top = -INFINITY, sum = 0;
      for (int64_t c = 0; c < C; ++c) {
        whole = whole && row[c] < INFINITY;
        if (row[c] > top) {
          top = row[c];
          arg = c;
        }
      }
      whole = whole && arg >= 0;
      for (int64_t c = 0; c < C; ++c) sum += std::exp(row[c] - top);
      total += 1 / sum;
      agree = agree && (k == 0 || arg == first);
      first = k == 0 ? arg : first;
    }
    const double want = total / static_cast<double>(K);
    const bool same = whole ? std::fabs(got[j] - want) <= 2e-6 * want : std::isnan(got[j]);
    wrong += !same || got_label[j] != (whole && agree ? first : -1);
  }
  return wrong;
}

int main(int argc, char** argv) {
  const int only = argc > 1 ? std::atoi(argv[1]) : 0;
  const int64_t K = 3, M = 200'000, C = 309;
  OnDevice<float> logits(gaussian(static_cast<size_t>(K * M * C), 2)), confidence(M), copy(static_cast<size_t>(K * M * C));
  OnDevice<bool> mask(M);
  OnDevice<int64_t> label(M);
  const double bytes = static_cast<double>(K * M * C) * 4;
  const float t = median_time([&] { CHECK(cudaMemcpyAsync(copy.p, logits.p, logits.n * 4, cudaMemcpyDeviceToDevice)); });
  const double bandwidth = 2 * bytes / t;
  std::printf("copy: %.2f ms, %.0f GB/s read and written\n", t, bandwidth / 1e6);
  int failed = 0;
  for (int version = 1; version <= 3; ++version) {
    if (only && version != only) continue;
    int64_t wrong = 0;
    for (const int64_t c : {1, 2, 31, 32, 33, 255, 256, 257, 309, 1000}) wrong += validate(version, 3, 500, c);
    const float ms = median_time([&] {
      launch(version, {logits.p, K, M, C, M * C, C, 1, nullptr, 0, 0}, {mask.p, label.p, confidence.p});
    });
    std::printf("version %d: %lld wrong rows, %.2f ms, %.0f GB/s, %.2f of the copy's\n", version, static_cast<long long>(wrong),
                ms, bytes / ms / 1e6, bytes / ms / bandwidth);
    failed |= wrong != 0;
  }
  return failed;
}
