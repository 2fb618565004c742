// heads_agreement on CUDA: modality_agreement of the K linear heads' logits, z weight_k^T + bias_k, without keeping the logits.
//
// Blocks of rows: torch's own product with all heads at once (float32 for half types) into a buffer that fits the second
// cache level, then agreement.cuh on its rows, which adds the bias. O(K M C D) time, O(kBytes + K C D) scratch.
#include <array>

#include "agreement.cuh"

namespace cox::cuda {
namespace {

constexpr int64_t kBytes = 16 << 20;  // of a block's logits

// Through the dispatcher, which knows the device.
void product(const Tensor& a, const Tensor& b, const Tensor& to) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(to)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // `to` once more: takes the reference back
}

Tensor without_gradient(const Tensor& t) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::detach", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <class A>
void run(Tensor z, const Tensor& weight, const Tensor& bias, const Agreement<A>& to) {
  const ScalarType dtype = acc_dtype(z.scalar_type());
  const int64_t M = z.size(0), K = weight.size(0), C = weight.size(1), D = weight.size(2);
  Tensor heads = torch::stable::reshape(torch::stable::to(without_gradient(weight), dtype), {K * C, D});
  heads = torch::stable::transpose(heads, 0, 1);  // (D, K C)
  const Tensor b = torch::stable::to(without_gradient(bias), dtype);
  z = without_gradient(z);
  int64_t block = kBytes / (K * C * static_cast<int64_t>(sizeof(A)));
  block = block < 256 ? 256 : block;
  block = block < M ? block : M;
  Tensor logits = make(z, {block, K * C}, dtype);
  for (int64_t j = 0; j < M; j += block) {
    const int64_t rows = M - j < block ? M - j : block;
    product(torch::stable::to(torch::stable::narrow(z, 0, j, rows), dtype), heads, torch::stable::narrow(logits, 0, 0, rows));
    launch_agreement<A>({data<A>(logits), K, rows, C, C, K * C, 1, data<A>(b), b.stride(0), b.stride(1)},
                        {to.mask + j, to.label + j, to.confidence + j}, current_stream(z));
  }
}

std::tuple<Tensor, Tensor, Tensor> heads_agreement(Tensor z, Tensor weight, Tensor bias) {
  check_heads_agreement(z, weight, bias);
  const DeviceGuard guard(z.get_device_index());
  const int64_t M = z.size(0);
  Tensor mask = make(z, {M}, ScalarType::Bool), label = make(z, {M}, ScalarType::Long);
  Tensor confidence = make(z, {M}, acc_dtype(z.scalar_type()));
  if (M > 0) {
    if (acc_dtype(z.scalar_type()) == ScalarType::Double) {
      run<double>(z, weight, bias, {out<bool>(mask), out<int64_t>(label), out<double>(confidence)});
    } else {
      run<float>(z, weight, bias, {out<bool>(mask), out<int64_t>(label), out<float>(confidence)});
    }
  }
  return {confidence, mask, label};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("heads_agreement", TORCH_BOX(&heads_agreement));
}

}  // namespace cox::cuda
