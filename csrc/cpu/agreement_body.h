// Included by simd.h once per instruction set: the verdict on rows of logits.

constexpr int64_t kAhead = 768;  // floats between what is read and what is fetched into the cache

struct Block {  // 32 logits
  VF v[2 * kParts];
};

// The logits from column c of a head; beyond its last column -inf.
template <bool kBias, bool kWhole>
COX_INLINE Block block_of(const float* a, const float* bias, int64_t c, int64_t C) {
  Block b;
  for (int p = 0; p < 2 * kParts; ++p) {
    const int64_t at = c + p * kWidth;
    b.v[p] = kWhole ? load(a + at) : load_first(a + at, C - at, -std::numeric_limits<float>::infinity());
    if (kBias) {
      b.v[p] += kWhole ? load(bias + at) : load_first(bias + at, C - at, 0);
    }
  }
  return b;
}

// The largest so far of every 16th logit, and the first block that it occurs in.
struct Most {
  VF value[kParts];
  VU block[kParts];
};

COX_INLINE void add(const Block& b, uint32_t number, Most& most) {
  for (int p = 0; p < kParts; ++p) {
    const VF here = larger(b.v[p], b.v[p + kParts]);
    const auto better = here > most.value[p];
    most.value[p] = better ? here : most.value[p];
    most.block[p] = better ? number + VU{} : most.block[p];
  }
}

COX_INLINE void add_exp(const Block& b, VF top, VF* sum) {
  for (int p = 0; p < kParts; ++p) {
    sum[p] += exp_of_negative(b.v[p] - top);  // NaN from NaN, from inf - inf, from -inf + inf
    sum[p] += exp_of_negative(b.v[p + kParts] - top);
  }
}

template <bool kBias>
COX_INLINE Most most_of(const float* a, const float* bias, int64_t C) {
  Most most;
  for (int p = 0; p < kParts; ++p) {
    most.value[p] = splat(-std::numeric_limits<float>::infinity());
    most.block[p] = VU{};
  }
  const int64_t whole = C / 32;
  for (int64_t i = 0; i < whole; ++i) {
    __builtin_prefetch(a + 32 * i + kAhead);
    __builtin_prefetch(a + 32 * i + kAhead + 16);
    add(block_of<kBias, true>(a, bias, 32 * i, C), static_cast<uint32_t>(i), most);
  }
  if (32 * whole < C) {
    add(block_of<kBias, false>(a, bias, 32 * whole, C), static_cast<uint32_t>(whole), most);
  }
  return most;
}

// The largest logit, and its class: the lowest of equals.
template <bool kBias>
COX_INLINE float largest_of(const float* a, const float* bias, const Most& most, int64_t* arg) {
  const float largest = largest16(most.value);
  unsigned at = 0;
  for (int p = 0; p < kParts; ++p) {
    at |= equal_bits(most.value[p], splat(largest)) << (p * kWidth);
  }
  at = largest > -std::numeric_limits<float>::infinity() ? at : 0;
  uint32_t block[16];
  memcpy(block, most.block, sizeof block);
  int64_t first = std::numeric_limits<int64_t>::max();
  for (; at; at &= at - 1) {  // lanes that hold the largest: one, but for ties
    int64_t c = 32 * int64_t(block[__builtin_ctz(at)]) + __builtin_ctz(at);
    c += 16 * (a[c] + (kBias ? bias[c] : 0.0f) != largest);  // it is the block's other half
    first = c < first ? c : first;
  }
  *arg = first;
  return largest;
}

// The sum of e^(logit - top), NaN where there is no softmax.
template <bool kBias>
COX_INLINE float sum_of(const float* a, const float* bias, int64_t C, float largest) {
  const VF top = splat(largest);
  const int64_t whole = C / 32;
  VF sum[kParts] = {};
  for (int64_t i = 0; i < whole; ++i) {
    add_exp(block_of<kBias, true>(a, bias, 32 * i, C), top, sum);
  }
  if (32 * whole < C) {
    add_exp(block_of<kBias, false>(a, bias, 32 * whole, C), top, sum);
  }
  return sum16(sum);
}

template <bool kBias>
COX_INLINE void rows_of(const Logits<float>& x, int64_t rows, const Verdict<float>& to) {
  for (int64_t j = 0; j < rows; ++j) {
    bool agree = true;
    int64_t first = -1;
    float total = 0;
    for (int64_t k = 0; k < x.K; ++k) {
      const float* a = x.first + k * x.head_stride + j * x.row_stride;
      const float* bias = kBias ? x.bias + k * x.C : nullptr;
      int64_t arg;
      const float largest = largest_of<kBias>(a, bias, most_of<kBias>(a, bias, x.C), &arg);
      total += 1 / sum_of<kBias>(a, bias, x.C, largest);
      agree &= k == 0 || arg == first;
      first = k == 0 ? arg : first;
    }
    agree &= total == total;
    to.mask[j] = agree;
    to.label[j] = agree ? first : -1;
    to.confidence[j] = total / static_cast<float>(x.K);  // NaN where a head has no softmax
  }
}

COX_TARGET void agree(const Logits<float>& x, int64_t rows, const Verdict<float>& to) {
  if (x.bias) {
    rows_of<true>(x, rows, to);
  } else {
    rows_of<false>(x, rows, to);
  }
}
