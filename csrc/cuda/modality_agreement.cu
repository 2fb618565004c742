// modality_agreement on CUDA: agreement.cuh on logits that are there.
#include "agreement.cuh"

namespace cox::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> modality_agreement(Tensor logits) {
  check_modality_agreement(logits);
  const DeviceGuard guard(logits.get_device_index());
  const int64_t K = logits.size(0), M = logits.size(1), C = logits.size(2);
  Tensor mask = make(logits, {M}, ScalarType::Bool), label = make(logits, {M}, ScalarType::Long);
  Tensor confidence = make(logits, {M}, acc_dtype(logits.scalar_type()));
  if (M > 0) {
    for_dtype(logits.scalar_type(), [&](auto t) {
      using T = decltype(t);
      launch_agreement<T>({data<T>(logits), K, M, C, logits.stride(0), logits.stride(1), logits.stride(2), nullptr, 0, 0},
                          {out<bool>(mask), out<int64_t>(label), out<acc_t<T>>(confidence)}, current_stream(logits));
    });
  }
  return {confidence, mask, label};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("modality_agreement", TORCH_BOX(&modality_agreement));
}

}  // namespace cox::cuda
