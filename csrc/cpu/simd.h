// Included by each_isa.h once per instruction set: 16 floats in as many registers as it takes, so that sums by lanes are
// the same with AVX2 and AVX-512; then COX_BODY.
namespace cox::cpu {
namespace {
namespace COX_NS {

typedef float VF __attribute__((vector_size(COX_BYTES)));
typedef uint32_t VU __attribute__((vector_size(COX_BYTES)));
typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
constexpr int kWidth = COX_BYTES / 4, kParts = 16 / kWidth;

COX_INLINE VF splat(float a) { return a - VF{}; }

COX_INLINE VF load(const float* p) {
  VF v;
  memcpy(&v, p, sizeof v);
  return v;
}

// The first n of p (any n); `fill` in the lanes behind them, where nothing is read.
COX_INLINE VF load_first(const float* p, int64_t n, float fill) {
  if (n >= kWidth) {
    return load(p);
  }
#if COX_BYTES == 64
  const __mmask16 in = n > 0 ? static_cast<__mmask16>((1u << n) - 1) : 0;
  return (VF)_mm512_mask_loadu_ps((__m512)splat(fill), in, p);
#else
  VF v = splat(fill);
  for (int64_t l = 0; l < n; ++l) {
    v[l] = p[l];
  }
  return v;
#endif
}

COX_INLINE VF fma(VF a, VF b, VF c) { return COX_FMA_F(a, b, c); }

// b where one of them is NaN
COX_INLINE VF larger(VF a, VF b) { return a > b ? a : b; }

// e^x for x <= 0, NaN for NaN. Down to x = -87 the relative error is below 1.6e-7 + 3e-9 |x| (without FMA 1.6e-7 +
// 6e-8 |x|); from there on, and for -inf, the result is e^-87 = 1.6e-38. e^0 is 1.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial of degree 5 (relative error 1e-7); times 2^n.
COX_INLINE VF exp_of_negative(VF x) {
  const VF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  x = larger(splat(-87.0f), x);
  const VF t = fma(x, splat(1.44269504f), magic), n = t - magic, r = fma(n, splat(-0.693147182f), x);
  VF p = splat(8.29026010e-3f);
  p = fma(p, r, splat(4.18981649e-2f));
  p = fma(p, r, splat(0.166676387f));
  p = fma(p, r, splat(0.499991477f));
  p = fma(p, r, splat(0.999999702f));
  p = fma(p, r, splat(1.0f));
#if COX_BYTES == 64
  return (VF)_mm512_mask_scalef_ps((__m512)p, 0xffff, (__m512)p, (__m512)n);
#else
  return p * (VF)(((VU)t << 23) + 0x3f800000u);
#endif
}

// Bit l: a and b are equal in lane l.
COX_INLINE unsigned equal_bits(VF a, VF b) {
#if COX_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
#elif COX_BYTES == 32
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ)));
#else
  unsigned bits = 0;
  for (int l = 0; l < kWidth; ++l) {
    bits |= static_cast<unsigned>(a[l] == b[l]) << l;
  }
  return bits;
#endif
}

// The sum of 16 lanes as a binary tree, and the largest of them.
COX_INLINE float sum16(const VF* v) {
  V4 q[4];
  memcpy(q, v, sizeof q);
  V4 s = (q[0] + q[2]) + (q[1] + q[3]);
  s += __builtin_shuffle(s, I4{2, 3, 0, 1});
  return s[0] + s[1];
}

COX_INLINE float largest16(const VF* v) {
  V4 q[4];
  memcpy(q, v, sizeof q);
  const V4 a = q[0] > q[2] ? q[0] : q[2], b = q[1] > q[3] ? q[1] : q[3];
  V4 s = a > b ? a : b;
  const V4 t = __builtin_shuffle(s, I4{2, 3, 0, 1});
  s = s > t ? s : t;
  return s[0] > s[1] ? s[0] : s[1];
}

#include COX_BODY

}  // namespace COX_NS
}  // namespace
}  // namespace cox::cpu
