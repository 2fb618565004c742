// Included by simd.h once per instruction set: kernels of one row's pairs from their products.
//
// ||a - b||^2 = norm_a + norm_b - 2 a.b, at least 0; kernel = sum_s exp(-||a - b||^2 / bandwidth_s).

COX_INLINE VF square_distance(const float* product, VF norm, const float* norms, int64_t left) {
  const VF sum = norm + load_first(norms, left, std::numeric_limits<float>::infinity());  // behind the end: kernel 0
  return larger(fma(splat(-2.0f), load_first(product, left, 0), sum), VF{});
}

// The sum of the kernels of n pairs.
COX_TARGET double kernels_of_row(const float* product, float norm, const float* norms, int64_t n,
                                 const std::vector<float>& inverse) {
  VF sum[kParts] = {};
  for (int64_t j = 0; j < n; j += 16) {
    for (int p = 0; p < kParts; ++p) {
      const int64_t at = j + p * kWidth;
      const VF d2 = square_distance(product + at, splat(norm), norms + at, n - at);
      for (const float inv : inverse) {
        sum[p] += exp_of_negative(d2 * splat(-inv));
      }
    }
  }
  return static_cast<double>(sum16(sum));
}

// product[j] <- w_j = sum_s exp(-d2_j / bandwidth_s) / bandwidth_s; returns their sum.
COX_TARGET double weights_of_row(float* product, float norm, const float* norms, int64_t n,
                                 const std::vector<float>& inverse) {
  VF sum[kParts] = {};
  for (int64_t j = 0; j < n; j += 16) {
    for (int p = 0; p < kParts; ++p) {
      const int64_t at = j + p * kWidth, left = n - at;
      const VF d2 = square_distance(product + at, splat(norm), norms + at, left);
      VF w = {};
      for (const float inv : inverse) {
        w = fma(exp_of_negative(d2 * splat(-inv)), splat(inv), w);
      }
      sum[p] += w;
      if (left > 0) {
        memcpy(product + at, &w, sizeof(float) * static_cast<size_t>(left < kWidth ? left : kWidth));
      }
    }
  }
  return static_cast<double>(sum16(sum));
}
