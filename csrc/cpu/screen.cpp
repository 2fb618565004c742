// The screen's inner loops (screen.h) for each instruction set.
#include "screen.h"

#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#define COX_X86 1
#else
#define COX_X86 0
#endif
#if COX_X86 && defined(__linux__) && __has_include(<amxint8intrin.h>)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define COX_AMX 1
#else
#define COX_AMX 0
#endif

namespace cox::cpu {
namespace {

// Wider than the machine's vectors where need be: the compiler splits them.
typedef float V16 __attribute__((vector_size(64), aligned(64)));
typedef int32_t I16 __attribute__((vector_size(64), aligned(64)));
typedef double V8 __attribute__((vector_size(64), aligned(64)));
typedef float F8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef int16_t S8 __attribute__((vector_size(16)));
typedef int8_t B8 __attribute__((vector_size(8)));

namespace plain {

inline void root(V16& x) {
  for (int l = 0; l < 16; ++l) x[l] = std::sqrt(x[l]);
}

inline uint32_t bits(const V16& a, const V16& b) {
  const I16 less = a < b;
  uint32_t m = 0;
  for (int l = 0; l < 16; ++l) m |= (less[l] & 1u) << l;
  return m;
}

template <class Query, class Bank>
void dots(const int32_t* q, const int32_t* b, int64_t steps, const int32_t* init, int32_t* out) {
  constexpr int per = 4 / sizeof(Query);
  for (int64_t r = 0; r < kQuery; ++r) {
    uint32_t acc[kBank];
    std::fill(acc, acc + kBank, static_cast<uint32_t>(init[r]));
    for (int64_t s = 0; s < steps; ++s) {
      const Query* x = reinterpret_cast<const Query*>(q + s * kQuery + r);
      const Bank* y = reinterpret_cast<const Bank*>(b + s * kBank);
      for (int64_t c = 0; c < kBank; ++c) {
        for (int p = 0; p < per; ++p) {
          acc[c] += static_cast<uint32_t>(static_cast<int32_t>(x[p]) * static_cast<int32_t>(y[per * c + p]));
        }
      }
    }
    memcpy(out + r * kBank, acc, sizeof acc);
  }
}

}  // namespace plain

#define COX_NS plain
#define COX_TARGET
#define COX_ROOT(x) root(x)
#define COX_BITS(a, b) bits(a, b)
#include "screen_body.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_ROOT
#undef COX_BITS

#if COX_X86
// R x C accumulators at a time; COX_STEP: (acc, bank vector, query vector) -> acc.
#define COX_DOTS(name, target_, V, load, set1, R, C, step)                                                    \
  __attribute__((target(target_))) void name(const int32_t* q, const int32_t* b, int64_t steps,              \
                                             const int32_t* init, int32_t* out) {                            \
    constexpr int64_t lanes = sizeof(V) / 4;                                                                  \
    for (int64_t r0 = 0; r0 < kQuery; r0 += R) {                                                              \
      for (int64_t c0 = 0; c0 < kBank; c0 += C * lanes) {                                                     \
        V acc[R][C];                                                                                          \
        for (int r = 0; r < R; ++r)                                                                           \
          for (int c = 0; c < C; ++c) acc[r][c] = set1(init[r0 + r]);                                         \
        for (int64_t s = 0; s < steps; ++s) {                                                                 \
          V y[C];                                                                                             \
          for (int c = 0; c < C; ++c) y[c] = load(reinterpret_cast<const V*>(b + s * kBank + c0 + c * lanes)); \
          for (int r = 0; r < R; ++r) {                                                                       \
            const V x = set1(q[s * kQuery + r0 + r]);                                                         \
            for (int c = 0; c < C; ++c) acc[r][c] = step;                                                     \
          }                                                                                                   \
        }                                                                                                     \
        for (int r = 0; r < R; ++r)                                                                           \
          for (int c = 0; c < C; ++c)                                                                         \
            *reinterpret_cast<V*>(out + (r0 + r) * kBank + c0 + c * lanes) = acc[r][c];                       \
      }                                                                                                       \
    }                                                                                                         \
  }

namespace avx2 {
#define COX_AVX2 "avx2,fma"
COX_DOTS(dots8, COX_AVX2, __m256i, _mm256_load_si256, _mm256_set1_epi32, 4, 2,
         _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(_mm256_maddubs_epi16(y[c], x), _mm256_set1_epi16(1))))
COX_DOTS(dots16, COX_AVX2, __m256i, _mm256_load_si256, _mm256_set1_epi32, 4, 2,
         _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(y[c], x)))

__attribute__((target(COX_AVX2))) inline void root(V16& x) {
  __m256* half = reinterpret_cast<__m256*>(&x);
  for (int h = 0; h < 2; ++h) half[h] = _mm256_sqrt_ps(half[h]);
}

__attribute__((target(COX_AVX2))) inline uint32_t bits(const V16& a, const V16& b) {
  const __m256 *p = reinterpret_cast<const __m256*>(&a), *q = reinterpret_cast<const __m256*>(&b);
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(p[0], q[0], _CMP_LT_OQ)) |
                               _mm256_movemask_ps(_mm256_cmp_ps(p[1], q[1], _CMP_LT_OQ)) << 8);
}
}  // namespace avx2

#define COX_NS avx2
#define COX_TARGET __attribute__((target(COX_AVX2)))
#define COX_ROOT(x) root(x)
#define COX_BITS(a, b) bits(a, b)
#include "screen_body.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_ROOT
#undef COX_BITS

namespace avx512 {
#define COX_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,fma"
COX_DOTS(dots8, COX_AVX512, __m512i, _mm512_load_si512, _mm512_set1_epi32, 12, 2,
         _mm512_add_epi32(acc[r][c], _mm512_madd_epi16(_mm512_maddubs_epi16(y[c], x), _mm512_set1_epi16(1))))
COX_DOTS(dots16, COX_AVX512, __m512i, _mm512_load_si512, _mm512_set1_epi32, 12, 2,
         _mm512_add_epi32(acc[r][c], _mm512_madd_epi16(y[c], x)))
}  // namespace avx512

#define COX_NS avx512
#define COX_TARGET __attribute__((target(COX_AVX512)))
#define COX_ROOT(x) x = (V16)_mm512_mul_ps((__m512)(x), _mm512_maskz_rsqrt14_ps(0xffff, (__m512)(x)))
#define COX_BITS(a, b) static_cast<uint32_t>(_mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_LT_OQ))
#include "screen_body.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_ROOT
#undef COX_BITS

namespace vnni {
#define COX_VNNI COX_AVX512 ",avx512vnni"
COX_DOTS(dots8, COX_VNNI, __m512i, _mm512_load_si512, _mm512_set1_epi32, 12, 2,
         _mm512_dpbusd_epi32(acc[r][c], y[c], x))
COX_DOTS(dots16, COX_VNNI, __m512i, _mm512_load_si512, _mm512_set1_epi32, 12, 2,
         _mm512_dpwssd_epi32(acc[r][c], y[c], x))
}  // namespace vnni
#endif

// ---------------------------------------------------------------- tiles

void nothing() {}

namespace emulated {

thread_local bool configured = false;  // AMX's tiles, too, are each thread's own
void enter() { configured = true; }
void leave() { configured = false; }

struct Tiles {  // as the instructions' definition says: c[m][n] += sum_k sum_i a[m][4k + i] b[k][4n + i]
  int8_t a[kQuery][4 * kDeep], b[2][kDeep][64];
  int32_t c[2][kQuery][16];

  void clear() {
    COX_CHECK(configured, "nearest_anchor: tiles are used before enter()");
    memset(c, 0, sizeof c);
  }
  void queries(const int32_t* p, int64_t stride) {
    for (int64_t m = 0; m < kQuery; ++m) memcpy(a[m], reinterpret_cast<const char*>(p) + m * stride, sizeof a[m]);
  }
  void bank(const int32_t* p, int64_t stride) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t k = 0; k < kDeep; ++k) memcpy(b[h][k], reinterpret_cast<const char*>(p + 16 * h) + k * stride, 64);
    }
  }
  void multiply() {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t m = 0; m < kQuery; ++m) {
        for (int64_t k = 0; k < kDeep; ++k) {
          for (int64_t n = 0; n < 16; ++n) {
            for (int64_t i = 0; i < 4; ++i) c[h][m][n] += a[m][4 * k + i] * b[h][k][4 * n + i];
          }
        }
      }
    }
  }
  void store(int32_t* p, int64_t stride) const {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t m = 0; m < kQuery; ++m) memcpy(reinterpret_cast<char*>(p + 16 * h) + m * stride, c[h][m], 64);
    }
  }
};

}  // namespace emulated

#define COX_NS emulated
#define COX_TARGET
#include "screen_tiles.h"
#undef COX_NS
#undef COX_TARGET

#if COX_AMX
namespace amx {
#define COX_TILES __attribute__((target("amx-tile,amx-int8")))

struct Configuration {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 4 * kDeep, 64, 64};  // of a row; c, c, a, b, b
  uint8_t rows[16] = {kQuery, kQuery, kQuery, kDeep, kDeep};
};
constexpr Configuration configuration;
static_assert(sizeof configuration == 64);

COX_TILES void enter() { _tile_loadconfig(&configuration); }
COX_TILES void leave() { _tile_release(); }

struct Tiles {
  COX_TILES static void clear() {
    __asm__ volatile("" ::: "memory");  // what the tiles are loaded from is written
    _tile_zero(0);
    _tile_zero(1);
  }
  COX_TILES static void queries(const int32_t* p, int64_t stride) { _tile_loadd(2, p, stride); }
  COX_TILES static void bank(const int32_t* p, int64_t stride) {
    _tile_loadd(3, p, stride);
    _tile_loadd(4, p + 16, stride);
  }
  COX_TILES static void multiply() {
    _tile_dpbssd(0, 2, 3);
    _tile_dpbssd(1, 2, 4);
  }
  COX_TILES static void store(int32_t* p, int64_t stride) {
    _tile_stored(0, p, stride);
    _tile_stored(1, p + 16, stride);
  }
};

}  // namespace amx

#define COX_NS amx
#define COX_TARGET COX_TILES
#include "screen_tiles.h"
#undef COX_NS
#undef COX_TARGET
#endif

// maddubs adds two products in 16 bits: with |q| <= 127 it needs b <= 127, hence 7 bits there.
#define COX_SHARED(ns) &ns::bounds, &ns::roots, &ns::below, &ns::centred, &ns::round, &ns::squares
constexpr Screen kScreens[] = {  // in tile.cpp's order
    {&plain::dots<int8_t, uint8_t>, &plain::dots<int16_t, int16_t>, 127, 128, 1, &nothing, &nothing, COX_SHARED(plain)},
#if COX_X86
    {&avx2::dots8, &avx2::dots16, 63, 64, 1, &nothing, &nothing, COX_SHARED(avx2)},
    {&avx512::dots8, &avx512::dots16, 63, 64, 1, &nothing, &nothing, COX_SHARED(avx512)},
    {&vnni::dots8, &vnni::dots16, 127, 128, 1, &nothing, &nothing, COX_SHARED(avx512)},
#endif
#if COX_AMX
    {&amx::dots8, &vnni::dots16, 127, 0, kDeep, &amx::enter, &amx::leave, COX_SHARED(avx512)},
#endif
};
constexpr Screen kEmulated = {&emulated::dots8, &plain::dots<int16_t, int16_t>, 127, 0, kDeep, &emulated::enter,
                              &emulated::leave, COX_SHARED(plain)};

}  // namespace

const Screen& pick_screen() {
  return isa_level() == kEmulatedTiles ? kEmulated : kScreens[isa_level()];
}

// AMX's tiles are the one instruction set here that needs the kernel's permission. They are taken where they give what
// their emulation gives.
bool amx_works() {
#if COX_AMX
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kHasTiles = 1u << 24, kHasInt8 = 1u << 25;  // leaf 7
  constexpr int kAsk = 0x1023, kTileData = 18;            // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kHasTiles) == 0 || (d & kHasInt8) == 0) return false;
  if (syscall(SYS_arch_prctl, kAsk, kTileData) != 0) return false;
  constexpr int64_t steps = 2 * kDeep;
  alignas(64) int32_t q[kQuery * steps], bank[steps * kBank], out[2][kQuery * kBank];
  uint32_t state = 1;
  for (int32_t* p : {q, bank}) {
    for (int64_t i = 0; i < (p == q ? kQuery : kBank) * steps; ++i) {
      state = state * 1664525u + 1013904223u;
      p[i] = static_cast<int32_t>(state);
    }
  }
  amx::enter();
  amx::dots8(q, bank, steps, nullptr, out[0]);
  amx::leave();
  emulated::enter();
  emulated::dots8(q, bank, steps, nullptr, out[1]);
  emulated::leave();
  return memcmp(out[0], out[1], sizeof out[0]) == 0;
#else
  return false;
#endif
}

}  // namespace cox::cpu
