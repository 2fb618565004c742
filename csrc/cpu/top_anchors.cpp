// top_anchors on the CPU: the t best of M scores in the order (score, index), optionally under a mask and with at most
// `quota` per class.
//
// Without a quota: select (nth_element) and sort the t chosen, O(M + t log t). With one: sort all candidates and walk,
// O(M log M). No two keys are equal, so neither sort needs to be stable.
#include <unordered_map>
#include <utility>

#include "tile.h"
#include "../order.h"

namespace cox::cpu {
namespace {

template <class T>
void run(const Tensor& score, int64_t t, bool largest, const std::optional<Tensor>& classes,
         std::optional<int64_t> quota, const std::optional<Tensor>& mask, int64_t* result) {
  using A = acc_t<T>;
  const int64_t M = score.size(0), stride = score.stride(0);
  const T* sp = data<T>(score);
  const int64_t* cp = classes ? data<int64_t>(*classes) : nullptr;
  const int64_t cs = classes ? classes->stride(0) : 0;
  const bool* mp = mask ? data<bool>(*mask) : nullptr;
  const int64_t ms = mask ? mask->stride(0) : 0;

  std::vector<std::pair<key_t<A>, int64_t>> items;
  for (int64_t i = 0; i < M; ++i) {
    const A s = static_cast<A>(sp[i * stride]);
    if (eligible(s, largest) && (!mp || mp[i * ms]) && (!cp || cp[i * cs] >= 0)) {
      items.emplace_back(order_key(s, largest), i);
    }
  }
  int64_t found = 0;
  if (!quota) {
    found = std::min<int64_t>(t, static_cast<int64_t>(items.size()));
    if (found < static_cast<int64_t>(items.size())) {
      std::nth_element(items.begin(), items.begin() + found, items.end());
    }
    std::sort(items.begin(), items.begin() + found);
    for (int64_t i = 0; i < found; ++i) {
      result[i] = items[i].second;
    }
  } else {
    std::sort(items.begin(), items.end());
    std::unordered_map<int64_t, int64_t> taken;
    for (size_t n = 0; n < items.size() && found < t; ++n) {
      const int64_t i = items[n].second;
      if (taken[cp[i * cs]] < *quota) {
        ++taken[cp[i * cs]];
        result[found++] = i;
      }
    }
  }
  std::fill(result + found, result + t, int64_t(-1));
}

Tensor top_anchors(Tensor score, int64_t t, bool largest, std::optional<Tensor> classes, std::optional<int64_t> quota,
                   std::optional<Tensor> mask) {
  check_top_anchors(score, t, classes, quota, mask);
  Tensor index = make(score, {t}, ScalarType::Long);
  for_dtype(score.scalar_type(),
            [&](auto v) { run<decltype(v)>(score, t, largest, classes, quota, mask, out<int64_t>(index)); });
  return index;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("top_anchors", TORCH_BOX(&top_anchors));
}

}  // namespace cox::cpu
