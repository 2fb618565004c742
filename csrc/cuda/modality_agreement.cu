// modality_agreement on CUDA: per row, whether the K heads' argmax are the same class, which, and the mean of their largest
// softmax probabilities.
//
// One warp per row, 8 rows per block (grid.x); a lane takes every 32nd class. Two passes over the logits of a head
// (maximum and argmax, then the sum of exponentials); the warp's reductions are butterflies in a fixed order:
// deterministic. O(K M C), no shared memory.
// Ties: the reduction compares (logit, class): the lowest class. NaN: a head whose softmax does not exist (a NaN, a +inf,
// or nothing above -inf) makes the row mask = false, label = -1, confidence = NaN.
#include <limits>

#include "launch.cuh"

namespace cox::cuda {
namespace {

constexpr int kWarps = 8;
constexpr unsigned kAll = 0xffffffffu;

template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    agreement(const T* logits, int64_t K, int64_t M, int64_t C, int64_t sk, int64_t sm, int64_t sc, bool* mask,
              int64_t* label, acc_t<T>* confidence) {
  using A = acc_t<T>;
  constexpr A inf = std::numeric_limits<A>::infinity();
  const int lane = threadIdx.x % 32;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (j >= M) {
    return;  // a whole warp
  }
  bool whole = true, agree = true;
  int64_t first = -1;
  A total = 0;
  for (int64_t k = 0; k < K; ++k) {
    const T* row = logits + k * sk + j * sm;
    A top = -inf;
    int64_t arg = C;  // above every class
    bool fine = true;
    for (int64_t c = lane; c < C; c += 32) {
      const A a = static_cast<A>(row[c * sc]);
      fine = fine && a < inf;  // false for NaN and +inf
      if (a > top) {
        top = a;
        arg = c;
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const A other = __shfl_xor_sync(kAll, top, step);
      const long long other_arg = __shfl_xor_sync(kAll, static_cast<long long>(arg), step);
      if (other > top || (other == top && other_arg < arg)) {
        top = other;
        arg = other_arg;
      }
    }
    whole = whole && __all_sync(kAll, fine) && arg < C;
    A sum = 0;
    for (int64_t c = lane; c < C; c += 32) {
      sum += exp(static_cast<A>(row[c * sc]) - top);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      sum += __shfl_xor_sync(kAll, sum, step);
    }
    total += 1 / sum;
    agree = agree && (k == 0 || arg == first);
    first = k == 0 ? arg : first;
  }
  if (lane == 0) {
    mask[j] = whole && agree;
    label[j] = whole && agree ? first : -1;
    confidence[j] = whole ? total / static_cast<A>(K) : std::numeric_limits<A>::quiet_NaN();
  }
}

std::tuple<Tensor, Tensor, Tensor> modality_agreement(Tensor logits) {
  check_modality_agreement(logits);
  const DeviceGuard guard(logits.get_device_index());
  const int64_t K = logits.size(0), M = logits.size(1), C = logits.size(2);
  Tensor mask = make(logits, {M}, ScalarType::Bool), label = make(logits, {M}, ScalarType::Long);
  Tensor confidence = make(logits, {M}, acc_dtype(logits.scalar_type()));
  if (M > 0) {
    const cudaStream_t stream = current_stream(logits);
    for_dtype(logits.scalar_type(), [&](auto t) {
      using T = decltype(t);
      COX_LAUNCH(dim3(grid_size(ceil_div(M, kWarps))), dim3(32 * kWarps), stream,
                 (data<T>(logits), K, M, C, logits.stride(0), logits.stride(1), logits.stride(2), out<bool>(mask),
                  out<int64_t>(label), out<acc_t<T>>(confidence)),
                 agreement<T>);
    });
  }
  return {confidence, mask, label};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("modality_agreement", TORCH_BOX(&modality_agreement));
}

}  // namespace cox::cuda
