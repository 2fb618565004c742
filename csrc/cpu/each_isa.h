// Includes COX_BODY (a quoted file name) once per instruction set, in namespaces plain, avx2 and avx512, each time with
// simd.h's vectors and functions; pick_isa chooses between the three at run time. Code of a body that uses vectors is
// marked COX_TARGET; what it calls is marked COX_INLINE as well.
#include "tile.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define COX_INLINE COX_TARGET inline __attribute__((always_inline))

#define COX_NS plain
#define COX_TARGET
#define COX_BYTES 16
#define COX_FMA_F(a, b, c) ((a) * (b) + (c))
#include "simd.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_BYTES
#undef COX_FMA_F

#if defined(__x86_64__)
#define COX_NS avx2
#define COX_TARGET __attribute__((target("avx2,fma")))
#define COX_BYTES 32
#define COX_FMA_F(a, b, c) (VF)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#include "simd.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_BYTES
#undef COX_FMA_F

#define COX_NS avx512
#define COX_TARGET __attribute__((target("avx512f,fma")))
#define COX_BYTES 64
#define COX_FMA_F(a, b, c) (VF)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#include "simd.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_BYTES
#undef COX_FMA_F
#endif

namespace cox::cpu {

// f of the instruction set in use: pick_isa(plain::f, avx2::f, avx512::f)
#if defined(__x86_64__)
#define COX_PICK(f) ::cox::cpu::pick_isa(&plain::f, &avx2::f, &avx512::f)
#else
#define COX_PICK(f) (&plain::f)
#endif

template <class F>
F pick_isa(F plain, F avx2, F avx512) {
  const int level = simd_level();
  return level == 2 ? avx512 : level == 1 ? avx2 : plain;
}

}  // namespace cox::cpu
