// What every CUDA operator needs around its kernels: the tensor's device, torch's current stream, a checked launch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>

#include "../common.h"

namespace cox::cuda {

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int64_t multiprocessors(const Tensor& t) {
  int n = 1;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, t.get_device_index()));
  return n;
}

// The kernel comes last because its template arguments may hold commas.
#define COX_LAUNCH(grid, block, stream, args, ...)   \
  do {                                               \
    __VA_ARGS__<<<(grid), (block), 0, (stream)>>> args; \
    STD_CUDA_KERNEL_LAUNCH_CHECK();                  \
  } while (0)

inline unsigned grid_size(int64_t n) {
  COX_CHECK(n <= 2147483647, "cox_ops: ", n, " blocks are more than a CUDA grid holds");
  return static_cast<unsigned>(n);
}

}  // namespace cox::cuda
