// heads_agreement on the CPU: modality_agreement of the K linear heads' logits, z weight_k^T + bias_k, without the logits.
//
// Blocks of rows, one thread each: the products with all heads at once by torch's own mm (float32 for half types) into a
// buffer that stays in the second cache level, then the verdict on its rows (agreement_body.h), which adds the bias.
// O(K M C D) time, O(K C D + threads * kBytes) scratch.
#include "agreement.h"
#include "matmul.h"

namespace cox::cpu {
namespace {

constexpr int64_t kBytes = 1 << 20;  // of a block's logits

template <class A>
void run(const Tensor& z, const Tensor& weight, const Tensor& bias, const Verdict<A>& to) {
  const ScalarType dtype = acc_dtype(z.scalar_type());
  const int64_t M = z.size(0), K = weight.size(0), C = weight.size(1), D = weight.size(2);
  const Tensor heads = torch::stable::transpose(
      torch::stable::reshape(torch::stable::to(detached(weight), dtype), {K * C, D}), 0, 1);  // (D, K C)
  const Tensor b = torch::stable::contiguous(torch::stable::to(detached(bias), dtype));
  const Tensor rows_of_z = detached(z);
  const int64_t block = std::clamp<int64_t>(kBytes / (K * C * static_cast<int64_t>(sizeof(A))) / 16 * 16, 64, 1024);
  const agree_fn<A> agree = pick_agree<A>();
  each_block(ceil_div(M, block), [&](int64_t begin, int64_t end) {
    const Tensor logits = make(rows_of_z, {block, K * C}, dtype);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t rows = std::min(block, M - i * block);
      const Tensor product = part(logits, 0, 0, rows);
      mm_out(torch::stable::to(part(rows_of_z, 0, i * block, rows), dtype), heads, product);
      agree({data<A>(product), K, C, C, K * C, data<A>(b)}, rows, to.from(i * block));
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> heads_agreement(Tensor z, Tensor weight, Tensor bias) {
  check_heads_agreement(z, weight, bias);
  const Outputs o(z, z.size(0));
  if (z.size(0) > 0) {
    if (acc_dtype(z.scalar_type()) == ScalarType::Double) {
      run<double>(z, weight, bias, o.verdict<double>());
    } else {
      run<float>(z, weight, bias, o.verdict<float>());
    }
  }
  return {o.confidence, o.mask, o.label};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("heads_agreement", TORCH_BOX(&heads_agreement));
}

}  // namespace cox::cpu
