// Products of rows in bfloat16 for soft_correspondence (bf16.cpp): by AMX's tiles or AVX-512's pairs, where this machine
// has them.
#pragma once

#include "soft_correspondence.h"

namespace cox::cpu {

// Two neighbouring coordinates of a row lie in a unit of 4 bytes, the first in its lower half.
struct Bf16 {
  // out[r][i] = sum_k z[r][k] items[k][i], r < kStep, i < cols: products are exact, sums in float32. z (kStep, units), items
  // (units, kItems), out (kStep, kItems); units is a multiple of deep, cols one of 16.
  int64_t deep;
  void (*products)(const uint32_t* z, const uint32_t* items, int64_t units, int64_t cols, float* out);
  void (*enter)();  // before a thread's first products ...
  void (*leave)();  // ... and after its last
};
constexpr int64_t kBf16Units = 16;  // of a row in one of AMX's tiles

struct Bf16Entered {  // while it lives, its thread may ask for products
  const Bf16* one;
  explicit Bf16Entered(const Bf16* bf16) : one(bf16) {
    if (one) one->enter();
  }
  ~Bf16Entered() {
    if (one) one->leave();
  }
  Bf16Entered(const Bf16Entered&) = delete;
  Bf16Entered& operator=(const Bf16Entered&) = delete;
};

const Bf16* pick_bf16();  // for the chosen instruction set; null: it has no such products

inline uint32_t bf16_pair(float first, float second) {  // of numbers that bfloat16 holds
  uint32_t a, b;
  memcpy(&a, &first, 4);
  memcpy(&b, &second, 4);
  return a >> 16 | (b & 0xffff0000u);
}

}  // namespace cox::cpu
