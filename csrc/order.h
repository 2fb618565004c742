// The order of (score, index) as unsigned integers, for the CPU and for CUDA.
//
// order_key(s, largest) is ascending from the best score to the worst, equal for +0 and -0. eligible() is false for NaN
// and for the worst infinity; kNever<key> is above every eligible score's key.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__CUDACC__)
#define COX_BOTH __host__ __device__ inline
#else
#define COX_BOTH inline
#endif

namespace cox {

template <class A>
using key_t = std::conditional_t<std::is_same_v<A, double>, uint64_t, uint32_t>;

template <class K>
constexpr K kNever = static_cast<K>(~K(0));

template <class A>
COX_BOTH bool eligible(A s, bool largest) {
  constexpr A inf = std::numeric_limits<A>::infinity();
  return largest ? s > -inf : s < inf;  // false for NaN
}

template <class A>
COX_BOTH key_t<A> order_key(A s, bool largest) {
  using K = key_t<A>;
  constexpr K sign = K(1) << (8 * sizeof(K) - 1);
  s = s + A(0);  // -0 -> +0
  K bits;
  memcpy(&bits, &s, sizeof bits);
  const K up = bits & sign ? ~bits : bits | sign;  // ascending in s
  return largest ? ~up : up;
}

}  // namespace cox
