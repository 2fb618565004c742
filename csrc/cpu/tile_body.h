// Included by tile.cpp once per instruction set. Expects COX_NS, COX_TARGET (function attribute), COX_BYTES (vector
// width), COX_R x COX_C (pairs in registers at a time) and COX_MADD_F / COX_MADD_D: (d, acc) -> d * d + acc.
namespace COX_NS {

typedef float VF __attribute__((vector_size(COX_BYTES)));
typedef double VD __attribute__((vector_size(COX_BYTES)));

COX_TARGET static inline __attribute__((always_inline)) void square_add(VF d, VF& acc) {
  acc = COX_MADD_F(d, acc);
}
COX_TARGET static inline __attribute__((always_inline)) void square_add(VD d, VD& acc) {
  acc = COX_MADD_D(d, acc);
}

template <class A, class V>
COX_TARGET void tile4x4(const A* z, const A* v, int64_t dp, A* out) {
  constexpr int lanes = kLanes<A>, width = COX_BYTES / sizeof(A), parts = lanes / width;
  alignas(64) A sums[16][lanes];
  for (int r0 = 0; r0 < 4; r0 += COX_R) {
    for (int c0 = 0; c0 < 4; c0 += COX_C) {
      V acc[COX_R][COX_C][parts] = {};
      for (int64_t d = 0; d < dp; d += lanes) {
        for (int p = 0; p < parts; ++p) {
          const int64_t at = d + p * width;
          V zr[COX_R];
          for (int r = 0; r < COX_R; ++r) {
            zr[r] = *reinterpret_cast<const V*>(z + (r0 + r) * dp + at);
          }
          for (int c = 0; c < COX_C; ++c) {
            const V vc = *reinterpret_cast<const V*>(v + (c0 + c) * dp + at);
            for (int r = 0; r < COX_R; ++r) {
              square_add(zr[r] - vc, acc[r][c][p]);
            }
          }
        }
      }
      for (int r = 0; r < COX_R; ++r) {
        for (int c = 0; c < COX_C; ++c) {
          for (int p = 0; p < parts; ++p) {
            *reinterpret_cast<V*>(&sums[4 * (r0 + r) + c0 + c][p * width]) = acc[r][c][p];
          }
        }
      }
    }
  }
  for (int i = 0; i < 16; ++i) {
    A* s = sums[i];
    if constexpr (lanes == 16) {
      for (int l = 0; l < 8; ++l) s[l] += s[l + 8];
    }
    for (int l = 0; l < 4; ++l) s[l] += s[l + 4];
    for (int l = 0; l < 2; ++l) s[l] += s[l + 2];
    out[i] = s[0] + s[1];
  }
}

}  // namespace COX_NS
