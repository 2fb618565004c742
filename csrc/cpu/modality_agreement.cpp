// modality_agreement on the CPU: per row, whether the K heads' argmax are the same class, which, and the mean of their
// largest softmax probabilities.
//
// One row at a time, two passes over its C logits per head (maximum, then sum of exponentials): O(K M C).
// Ties: argmax is the lowest class (only a strictly larger logit wins).
// NaN: a head whose softmax does not exist (a NaN, a +inf, or nothing above -inf) makes the row mask = false,
// label = -1, confidence = NaN.
#include <cmath>
#include <limits>

#include "tile.h"

namespace cox::cpu {
namespace {

template <class T>
void run(const Tensor& logits, const Tensor& mask, const Tensor& label, const Tensor& confidence) {
  using A = acc_t<T>;
  constexpr A inf = std::numeric_limits<A>::infinity();
  const int64_t K = logits.size(0), M = logits.size(1), C = logits.size(2);
  const int64_t sk = logits.stride(0), sm = logits.stride(1), sc = logits.stride(2);
  const T* lp = data<T>(logits);
  bool* mp = out<bool>(mask);
  int64_t* yp = out<int64_t>(label);
  A* cp = out<A>(confidence);
  torch::stable::parallel_for(0, M, std::max<int64_t>(1, 16384 / (K * C)), [&](int64_t begin, int64_t end) {
    Buffer<A> row(C);
    A* a = row.get();
    for (int64_t j = begin; j < end; ++j) {
      bool agree = true, whole = true;
      int64_t first = -1;
      A total = 0;
      for (int64_t k = 0; k < K && whole; ++k) {
        const T* l = lp + k * sk + j * sm;
        A top = -inf;
        int64_t arg = -1;
        for (int64_t c = 0; c < C; ++c) {
          a[c] = static_cast<A>(l[c * sc]);
          whole &= a[c] < inf;  // false for NaN and +inf
          if (a[c] > top) {
            top = a[c];
            arg = c;
          }
        }
        whole &= arg >= 0;
        if (!whole) {
          break;
        }
        A sum = 0;
        for (int64_t c = 0; c < C; ++c) {
          sum += std::exp(a[c] - top);
        }
        total += 1 / sum;
        agree &= k == 0 || arg == first;
        first = k == 0 ? arg : first;
      }
      mp[j] = whole && agree;
      yp[j] = whole && agree ? first : -1;
      cp[j] = whole ? total / static_cast<A>(K) : std::numeric_limits<A>::quiet_NaN();
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> modality_agreement(Tensor logits) {
  check_modality_agreement(logits);
  const int64_t M = logits.size(1);
  Tensor mask = make(logits, {M}, ScalarType::Bool), label = make(logits, {M}, ScalarType::Long);
  Tensor confidence = make(logits, {M}, acc_dtype(logits.scalar_type()));
  if (M > 0) {
    for_dtype(logits.scalar_type(), [&](auto t) { run<decltype(t)>(logits, mask, label, confidence); });
  }
  return {confidence, mask, label};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("modality_agreement", TORCH_BOX(&modality_agreement));
}

}  // namespace cox::cpu
