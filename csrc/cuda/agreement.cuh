// The kernel of modality_agreement and heads_agreement: per row, whether the K heads' argmax are the same class, which, and
// the mean of their largest softmax probabilities.
//
// One warp per row, 8 rows per block (grid.x). A lane takes every 32nd class, kAhead loads at a time before their first use, and
// keeps its maximum, the lowest class that has it and its sum of exponentials below that maximum: each logit is read once.
// Butterflies in a fixed order join the lanes: deterministic. O(K M C), no shared memory.
// Ties: the lowest class. NaN: a head whose softmax does not exist (a NaN, a +inf, or nothing above -inf) makes the row mask =
// false, label = -1, confidence = NaN.
#pragma once

#include <limits>

#include "launch.cuh"

namespace cox::cuda {

constexpr int kWarps = 8, kAhead = 8;
constexpr unsigned kAll = 0xffffffffu;

template <class T>
struct Logits {  // logits[k * sk + m * sm + c * sc] + bias[k * bk + c * bc]; bias: or null
  const T* p;
  int64_t K, M, C, sk, sm, sc;
  const T* bias;
  int64_t bk, bc;
};

template <class A>
struct Agreement {
  bool* mask;
  int64_t* label;
  A* confidence;
};

template <class T>
__global__ void __launch_bounds__(32 * kWarps, std::is_same_v<T, double> ? 1 : 2)
    agreement(Logits<T> l, Agreement<acc_t<T>> to) {
  using A = acc_t<T>;
  constexpr A inf = std::numeric_limits<A>::infinity();
  const int lane = threadIdx.x % 32;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (j >= l.M) {
    return;  // a whole warp
  }
  bool whole = true, agree = true;
  int64_t first = -1;
  A total = 0;
  for (int64_t k = 0; k < l.K; ++k) {
    const T* row = l.p + k * l.sk + j * l.sm;
    A top = -inf, sum = 0;
    int64_t arg = l.C;  // above every class
    bool fine = true;
    for (int64_t c0 = lane; c0 < l.C; c0 += 32 * kAhead) {
      A a[kAhead];
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const int64_t c = c0 + 32 * n;
        a[n] = c < l.C ? static_cast<A>(row[c * l.sc]) : -inf;
        if (l.bias != nullptr && c < l.C) {
          a[n] += static_cast<A>(l.bias[k * l.bk + c * l.bc]);
        }
      }
      const A before = top;
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        fine = fine && a[n] < inf;  // false for NaN and +inf
        if (a[n] > top) {
          top = a[n];
          arg = c0 + 32 * n;
        }
      }
      if (top > -inf) {
        sum *= exp(before - top);
#pragma unroll
        for (int n = 0; n < kAhead; ++n) sum += exp(a[n] - top);
      }
    }
    const A mine = top;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const A other = __shfl_xor_sync(kAll, top, step);
      const long long other_arg = __shfl_xor_sync(kAll, static_cast<long long>(arg), step);
      if (other > top || (other == top && other_arg < arg)) {
        top = other;
        arg = other_arg;
      }
    }
    whole = whole && __all_sync(kAll, fine) && arg < l.C;
    sum *= exp(mine - top);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
    total += 1 / sum;
    agree = agree && (k == 0 || arg == first);
    first = k == 0 ? arg : first;
  }
  if (lane == 0) {
    to.mask[j] = whole && agree;
    to.label[j] = whole && agree ? first : -1;
    to.confidence[j] = whole ? total / static_cast<A>(l.K) : std::numeric_limits<A>::quiet_NaN();
  }
}

template <class T>
void launch_agreement(const Logits<T>& l, const Agreement<acc_t<T>>& to, cudaStream_t stream) {
  COX_LAUNCH(dim3(grid_size(ceil_div(l.M, kWarps))), dim3(32 * kWarps), stream, (l, to), agreement<T>);
}

}  // namespace cox::cuda
