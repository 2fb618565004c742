// torch's own matrix product for kernels that work in blocks, one block per thread.
#pragma once

#include <algorithm>
#include <array>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../common.h"

namespace cox::cpu {

constexpr int64_t kInner = 256;

// f(first, end) for ranges of n blocks, in parallel. Never outside of a parallel region where there are threads: there torch's
// product would use them all, and a single block's result might depend on their number.
template <class F>
void each_block(int64_t n, F&& f) {
  torch::stable::parallel_for(0, std::max<int64_t>(n, 2), 1, [&](int64_t begin, int64_t end) {
    f(begin, std::min(end, n));
  });
}

// A view without gradient: threads of a kernel do not know that gradients are dealt with elsewhere.
inline Tensor detached(const Tensor& t) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::detach", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor part(const Tensor& t, int64_t dim, int64_t first, int64_t n) {
  Tensor whole = t;
  return torch::stable::narrow(whole, dim, first, n);
}

// to <- a b, kInner products of a sum at a time: of longer sums torch's product may make another order on more threads.
inline void mm_out(const Tensor& a, const Tensor& b, const Tensor& to) {
  const int64_t inner = a.size(1);
  for (int64_t k = 0; k == 0 || k < inner; k += kInner) {
    const int64_t n = std::min(kInner, inner - k);
    const Tensor ak = part(a, 1, k, n), bk = part(b, 0, k, n);
    TORCH_ERROR_CODE_CHECK(k == 0 ? aoti_torch_cpu_mm_out(to.get(), ak.get(), bk.get())
                                  : aoti_torch_cpu_addmm_out(to.get(), to.get(), ak.get(), bk.get(), 1, 1));
  }
}

inline Tensor matrix(const Tensor& buffer, int64_t rows, int64_t cols) {
  return torch::stable::view(part(buffer, 0, 0, rows * cols), {rows, cols});
}

// to (rows, cols) <- a[i0, i0 + rows) b[j0, j0 + cols)^T; `to` is a flat buffer
inline void mm_rows(const Tensor& a, int64_t i0, int64_t rows, const Tensor& b, int64_t j0, int64_t cols, const Tensor& to) {
  mm_out(part(a, 0, i0, rows), torch::stable::transpose(part(b, 0, j0, cols), 0, 1), matrix(to, rows, cols));
}

// to (rows, D) <- w (rows, cols) b[j0, j0 + cols); w and `to` are flat buffers
inline void mm_weights(const Tensor& w, int64_t rows, int64_t cols, const Tensor& b, int64_t j0, const Tensor& to) {
  mm_out(matrix(w, rows, cols), part(b, 0, j0, cols), matrix(to, rows, b.size(1)));
}

}  // namespace cox::cpu
