// What every CUDA operator needs around its kernels: the tensor's device, torch's current stream, a checked launch.
// With COX_EMULATED the same source is C++ that runs on the CPU (tests/emulated).
#pragma once

#include "../common.h"

#ifdef COX_EMULATED
#include "emulate.h"
#else
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>
#endif

namespace cox::cuda {

#ifdef COX_EMULATED

inline cudaStream_t current_stream(const Tensor&) {
  return nullptr;
}

inline int64_t multiprocessors(const Tensor&) {
  return 3;
}

#define COX_LAUNCH_SHARED(grid, block, shared, stream, args, ...) \
  ::emulate::launch((grid), (block), (shared), [&] { __VA_ARGS__ args; }); \
  (void)(stream)

#define COX_ALLOW_SHARED(bytes, ...) (void)(bytes)
#define COX_DYNAMIC_SHARED(name) auto* name = reinterpret_cast<unsigned char*>(::emulate::machine().shared.data())

#else

using torch::stable::accelerator::DeviceGuard;

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
#define COX_LAUNCH_SHARED(grid, block, shared, stream, args, ...) \
  do {                                                            \
    __VA_ARGS__<<<(grid), (block), (shared), (stream)>>> args;    \
    STD_CUDA_KERNEL_LAUNCH_CHECK();                               \
  } while (0)

// Before a launch with more than 48 KiB of dynamic shared memory.
#define COX_ALLOW_SHARED(bytes, ...) \
  STD_CUDA_CHECK(cudaFuncSetAttribute(__VA_ARGS__, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)))

#define COX_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#endif

#define COX_LAUNCH(grid, block, stream, args, ...) COX_LAUNCH_SHARED(grid, block, 0, stream, args, __VA_ARGS__)

inline unsigned grid_size(int64_t n) {
  COX_CHECK(n <= 2147483647, "cox_ops: ", n, " blocks are more than a CUDA grid holds");
  return static_cast<unsigned>(n);
}

}  // namespace cox::cuda
