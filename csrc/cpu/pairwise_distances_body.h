// Included by simd.h once per instruction set: the gradient of one row.

// s[e] += sum_j w[j] (a[e] - q_j[e]), j ascending, for dp values, a multiple of 16.
COX_TARGET void pull_row(const float* a, const float* const* q, const float* w, int64_t n, int64_t dp, float* s) {
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    for (int64_t e = 0; e < dp; e += kWidth) {
      const VF at = load(a + e);
      VF sum = load(s + e);
      for (int64_t i = j; i < j + 4; ++i) {
        sum = fma(splat(w[i]), at - load(q[i] + e), sum);
      }
      memcpy(s + e, &sum, sizeof sum);
    }
  }
  for (; j < n; ++j) {
    for (int64_t e = 0; e < dp; e += kWidth) {
      const VF sum = fma(splat(w[j]), load(a + e) - load(q[j] + e), load(s + e));
      memcpy(s + e, &sum, sizeof sum);
    }
  }
}
