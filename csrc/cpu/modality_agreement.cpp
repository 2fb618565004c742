// modality_agreement on the CPU: per row, whether the K heads' argmax are the same class, which, and the mean of their
// largest softmax probabilities.
//
// One row of one head at a time: its C logits come from memory once and stay in the first cache level for the maximum, the
// sum of exponentials (16 at a time, simd.h) and the maximum's place. O(K M C). float64: plain code.
// Ties: argmax is the lowest class (only a strictly larger logit wins).
// NaN: a head whose softmax does not exist (a NaN, a +inf, or nothing above -inf) makes the row mask = false,
// label = -1, confidence = NaN.
#include <cmath>
#include <limits>

#include "agreement.h"

#define COX_BODY "agreement_body.h"
#include "each_isa.h"

namespace cox::cpu {

namespace {

void agree_double(const Logits<double>& x, int64_t rows, const Verdict<double>& to) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  for (int64_t j = 0; j < rows; ++j) {
    bool agree = true, whole = true;
    int64_t first = -1;
    double total = 0;
    for (int64_t k = 0; k < x.K && whole; ++k) {
      const double* l = x.first + k * x.head_stride + j * x.row_stride;
      const double* bias = x.bias ? x.bias + k * x.C : nullptr;
      double top = -inf, sum = 0;
      int64_t arg = -1;
      for (int64_t c = 0; c < x.C; ++c) {
        const double a = bias ? l[c] + bias[c] : l[c];
        whole &= a < inf;  // false for NaN and +inf
        if (a > top) {
          top = a;
          arg = c;
        }
      }
      whole &= arg >= 0;
      for (int64_t c = 0; whole && c < x.C; ++c) {
        sum += std::exp((bias ? l[c] + bias[c] : l[c]) - top);
      }
      total += 1 / sum;
      agree &= k == 0 || arg == first;
      first = k == 0 ? arg : first;
    }
    to.mask[j] = whole && agree;
    to.label[j] = whole && agree ? first : -1;
    to.confidence[j] = whole ? total / static_cast<double>(x.K) : std::numeric_limits<double>::quiet_NaN();
  }
}

}  // namespace

template <>
agree_fn<float> pick_agree<float>() {
  return COX_PICK(agree);
}

template <>
agree_fn<double> pick_agree<double>() {
  return &agree_double;
}

namespace {

template <class T>
void run(const Tensor& logits, const Verdict<acc_t<T>>& to) {
  using A = acc_t<T>;
  const int64_t K = logits.size(0), M = logits.size(1), C = logits.size(2);
  const int64_t sk = logits.stride(0), sm = logits.stride(1), sc = logits.stride(2);
  const T* lp = data<T>(logits);
  const agree_fn<A> agree = pick_agree<A>();
  torch::stable::parallel_for(0, M, std::max<int64_t>(1, 16384 / (K * C)), [&](int64_t begin, int64_t end) {
    if constexpr (std::is_same_v<T, A>) {
      if (sc == 1) {
        return agree({lp + begin * sm, K, C, sk, sm, nullptr}, end - begin, to.from(begin));
      }
    }
    Buffer<A> row(K * C);  // any strides, half types: one row of all heads at a time
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t k = 0; k < K; ++k) {
        const T* l = lp + k * sk + j * sm;
        for (int64_t c = 0; c < C; ++c) {
          row.get()[k * C + c] = static_cast<A>(l[c * sc]);
        }
      }
      agree({row.get(), K, C, C, 0, nullptr}, 1, to.from(j));
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> modality_agreement(Tensor logits) {
  check_modality_agreement(logits);
  const Outputs o(logits, logits.size(1));
  if (logits.size(1) > 0) {
    for_dtype(logits.scalar_type(), [&](auto t) { run<decltype(t)>(logits, o.verdict<acc_t<decltype(t)>>()); });
  }
  return {o.confidence, o.mask, o.label};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("modality_agreement", TORCH_BOX(&modality_agreement));
}

}  // namespace cox::cpu
