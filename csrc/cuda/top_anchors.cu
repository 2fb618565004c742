// top_anchors on CUDA: the t best of M scores in the order (score, index), optionally under a mask and with at most `quota`
// per class.
//
// Integer keys in the order of the scores (order.h; ineligible items get the largest key), then torch's stable sort, so that
// ties keep the order of their indices. With a quota: a second stable sort, of the classes in score order, puts each
// class's items side by side, still in score order; an item's rank in its class is its distance from the class's first
// (binary search); a running sum over the items kept gives each its place. One thread per item in every kernel. O(M log M),
// O(M) scratch, no synchronisation, no atomics.
#include <array>
#include <limits>

#include "launch.cuh"
#include "../order.h"

namespace cox::cuda {
namespace {

constexpr int kBlock = 256;

template <class A>
using signed_key_t = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

__device__ int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

template <class T>
__global__ void make_keys(const T* score, int64_t ss, const int64_t* classes, int64_t cs, const bool* mask, int64_t ms,
                          int64_t M, bool largest, signed_key_t<acc_t<T>>* keys) {
  using A = acc_t<T>;
  using S = signed_key_t<A>;
  const int64_t i = thread_number();
  if (i >= M) {
    return;
  }
  const A s = static_cast<A>(score[i * ss]);
  const bool ok = eligible(s, largest) && (mask == nullptr || mask[i * ms]) && (classes == nullptr || classes[i * cs] >= 0);
  constexpr key_t<A> sign = key_t<A>(1) << (8 * sizeof(S) - 1);
  keys[i] = static_cast<S>((ok ? order_key(s, largest) : kNever<key_t<A>>) ^ sign);  // unsigned order as signed order
}

template <class S>
__global__ void take_first(const S* sorted, const int64_t* order, int64_t M, int64_t t, int64_t* result) {
  const int64_t i = thread_number();
  if (i < t) {
    result[i] = i < M && sorted[i] != std::numeric_limits<S>::max() ? order[i] : -1;
  }
}

__global__ void gather_classes(const int64_t* classes, int64_t cs, const int64_t* order, int64_t M, int64_t* ordered) {
  const int64_t p = thread_number();
  if (p < M) {
    ordered[p] = classes[order[p] * cs];
  }
}

// Ineligible items lie behind all others in score order, hence also within their class: they take no one's rank.
template <class S>
__global__ void keep_by_rank(const int64_t* sorted_classes, const int64_t* place, const S* sorted, int64_t M,
                             int64_t quota, int64_t* keep) {
  const int64_t q = thread_number();
  if (q >= M) {
    return;
  }
  int64_t low = 0, high = q;  // first position of this class
  while (low < high) {
    const int64_t mid = low + (high - low) / 2;
    if (sorted_classes[mid] < sorted_classes[q]) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  const int64_t p = place[q];
  keep[p] = q - low < quota && sorted[p] != std::numeric_limits<S>::max();
}

__global__ void place_kept(const int64_t* keep, const int64_t* running, const int64_t* order, int64_t M, int64_t t,
                           int64_t* result) {
  const int64_t p = thread_number();
  if (p < M && keep[p] != 0 && running[p] <= t) {
    result[running[p] - 1] = order[p];
  }
}

std::tuple<Tensor, Tensor> stable_sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(static_cast<int64_t>(0)),
                                    from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

Tensor running_sum(const Tensor& t) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 3> stack{from(t), from(static_cast<int64_t>(0)), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

Tensor top_anchors(Tensor score, int64_t t, bool largest, std::optional<Tensor> classes, std::optional<int64_t> quota,
                   std::optional<Tensor> mask) {
  check_top_anchors(score, t, classes, quota, mask);
  const DeviceGuard guard(score.get_device_index());
  const int64_t M = score.size(0);
  Tensor result = make(score, {t}, ScalarType::Long);
  if (t == 0) {
    return result;
  }
  const cudaStream_t stream = current_stream(score);
  const dim3 per_item(grid_size(ceil_div(M, kBlock))), per_result(grid_size(ceil_div(t, kBlock))), block(kBlock);
  for_dtype(score.scalar_type(), [&](auto v) {
    using T = decltype(v);
    using S = signed_key_t<acc_t<T>>;
    Tensor keys = make(score, {M}, sizeof(S) == 8 ? ScalarType::Long : ScalarType::Int);
    if (M > 0) {
      COX_LAUNCH(per_item, block, stream,
                 (data<T>(score), score.stride(0), classes ? data<int64_t>(*classes) : nullptr,
                  classes ? classes->stride(0) : 0, mask ? data<bool>(*mask) : nullptr, mask ? mask->stride(0) : 0, M,
                  largest, out<S>(keys)),
                 make_keys<T>);
    }
    const auto [sorted, order] = stable_sort(keys);
    if (!quota || M == 0) {
      COX_LAUNCH(per_result, block, stream, (data<S>(sorted), data<int64_t>(order), M, t, out<int64_t>(result)),
                 take_first<S>);
      return;
    }
    Tensor ordered = make(score, {M}, ScalarType::Long), keep = make(score, {M}, ScalarType::Long);
    COX_LAUNCH(per_item, block, stream,
               (data<int64_t>(*classes), classes->stride(0), data<int64_t>(order), M, out<int64_t>(ordered)),
               gather_classes);
    const auto [sorted_classes, place] = stable_sort(ordered);
    COX_LAUNCH(per_item, block, stream,
               (data<int64_t>(sorted_classes), data<int64_t>(place), data<S>(sorted), M, *quota, out<int64_t>(keep)),
               keep_by_rank<S>);
    Tensor running = running_sum(keep);
    torch::stable::fill_(result, -1);
    COX_LAUNCH(per_item, block, stream,
               (data<int64_t>(keep), data<int64_t>(running), data<int64_t>(order), M, t, out<int64_t>(result)),
               place_kept);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("top_anchors", TORCH_BOX(&top_anchors));
}

}  // namespace cox::cuda
